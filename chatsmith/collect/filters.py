"""What is worth keeping: instructions by language, form and novelty, answers by how they end and begin.

Every function that judges returns the reason why a text is left out, or "".
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

from chatsmith.collect.endpoint import Reply
from chatsmith.screen.text import printable

Language = Literal["English", "Chinese"]

NEAR_DUPLICATE = 0.7  # ROUGE-L above this: Wang et al. 2022, arXiv:2212.10560, section 2.2
LENGTHS: dict[Language, tuple[int, int]] = {"English": (3, 300), "Chinese": (4, 600)}  # in tokens as below

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNSPACED = _HAN + "\u3040-\u30ff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_IS_HAN = re.compile(rf"[{_HAN}]")
_OPENING = ("Ps", "Pi")  # categories of punctuation that a sentence may begin with: brackets, quotation marks

_SEEN = r"(?:images?|pictures?|photos?|photographs?|videos?|clips?|audio|recordings?|files?|screenshots?)"
_NOT_TEXT = re.compile(
    rf"\b(?:attached|uploaded|(?:this|these|following|given|provided) {_SEEN}|{_SEEN} (?:below|above))\b"
    rf"|\b(?:create|make|generate|design|show|send)(?: me)? (?:an? |the )?(?:\w+ )?{_SEEN}\b"
    r"|^(?:draw|paint|sketch|watch|upload|download)\b"
    rf"|^(?:open|play|listen to|find|visit)(?: \w+){{0,3}} (?:{_SEEN}|song|website|link)\b"
    r"|附件|上传|下载|[这该下上附](?:面的?)?[张幅段个]?(?:图片|照片|图像|视频|音频|录音)"
    r"|(?:画|绘制)(?:一|出|个)|生成一?[张幅段个]?(?:图|照片|视频|音频)|^(?:播放|观看|聆听)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\[(?:insert|your|paste|add)\b|[\[【](?:插入|在此|此处|你的|您的)", re.IGNORECASE)
_DO = (
    r"(?:help|assist|provide|answer|fulfil|comply|create|generate|access|open|view|see|hear|play|draw|browse|write|do)"
)
_REFUSAL = re.compile(
    r"(?:(?:i['’]m|i am) (?:very |really |truly )?sorry|sorry|i apologi[sz]e|unfortunately)?[,.:;]?\s*(?:but )?"
    rf"(?:as an? (?:\w+ )?(?:ai\b|language model)|i(?: can(?:no|['’])t| can not|['’]m unable to| am unable to"
    rf"|['’]m not able to| am not able to| won['’]t) (?:\w+ )?{_DO}\b)"
    r"|(?:很|非常|十分)?(?:抱歉|对不起)[，,。]?.{0,8}(?:无法|不能|没有办法)|作为(?:一个|一名|一款)?\s*(?:人工智能|AI|语言模型)"
    r"|我(?:无法|不能)(?:提供|回答|帮助|协助|满足|访问|打开|完成|生成|播放|查看)",
    re.IGNORECASE,
)


def tokens(text: str) -> list[str]:
    """What ROUGE-L compares: words in lower case, and single characters where a script has no spaces between words."""
    return _TOKEN.findall(text.lower())


def language(text: str) -> Language | None:
    """Chinese if a third of the tokens are Han characters, else English if most are words in Latin letters."""
    words = [token for token in tokens(text) if token[0].isalpha()]
    han = sum(_IS_HAN.match(word) is not None for word in words)
    latin = sum("LATIN" in unicodedata.name(word[0], "") for word in words)
    # names and code in Chinese text are Latin; Japanese has kana
    if 3 * han >= len(words) and han > len(words) - han - latin:
        return "Chinese"
    return "English" if 2 * latin > len(words) else None


class Known:
    """Texts that a new one must differ from, by ROUGE-L (Lin 2004) of their tokens: the F-measure 2 LCS / (m + n)."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._letters: dict[str, str] = {}
        self._texts = [self._encode(text) for text in texts]

    def add(self, text: str) -> None:
        self._texts.append(self._encode(text))

    def nearest(self, text: str, *, above: float = NEAR_DUPLICATE) -> float:
        """The highest ROUGE-L of `text` with one of them, or 0 where none is above `above`."""
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        # insertions and deletions between sequences of m and n are m + n - 2 LCS, so their similarity is ROUGE-L
        best = process.extractOne(
            self._encode(text), self._texts, scorer=Indel.normalized_similarity, score_cutoff=above
        )
        return best[1] if best is not None and best[1] > above else 0.0

    def _encode(self, text: str) -> str:
        """One character for every token: strings are compared an order of magnitude faster than lists."""
        return "".join(self._letters.setdefault(token, chr(len(self._letters))) for token in tokens(text))


def unfit_instruction(text: str, expected: Language) -> str:
    shortest, longest = LENGTHS[expected]
    length = len(tokens(text))
    if printable(text) != text:
        return "control characters"
    if length < shortest:
        return "too short"
    if length > longest:
        return "too long"
    if unicodedata.category(text[0])[0] in "PS" and unicodedata.category(text[0]) not in _OPENING and text[0] != '"':
        return "starts with punctuation"
    if language(text) != expected:
        return f"not {expected}"
    if _NOT_TEXT.search(text):
        return "needs more than text"
    return "placeholder" if _PLACEHOLDER.search(text) else ""


def unfit_answer(reply: Reply) -> str:
    text = reply.text.strip()
    if reply.finish_reason == "malformed":
        return "malformed reply"
    if reply.finish_reason == "length":
        return "answer cut off"
    if reply.finish_reason == "content_filter" or _REFUSAL.match(text):
        return "answer refused"
    if not text:
        return "answer empty"
    if text.startswith("<think>"):
        return "answer thinks aloud"
    return "control characters" if printable(text) != text else ""
