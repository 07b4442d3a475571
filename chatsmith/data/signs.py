"""What looks wrong in the text of one record. Signs, not proofs: each is right now and then in good data.

What must not be at all (empty turns, a wrong order of roles) is no Record: `formats.py` refuses it with a reason.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chatsmith.data.formats import best_answer, imitable
from chatsmith.types import Record

AROUND = 40  # characters of a text on either side of what was found
LONG_ENOUGH = 20  # characters from which on an answer does not begin with its prompt by chance


@dataclass(frozen=True)
class Sign:
    """A way in which records look wrong: what to say of them, what to do, and from which share on it is a warning."""

    what: str
    remedy: str
    warn_from: float


SIGNS = {
    "garbled": Sign(
        "garbled characters, as UTF-8 that was once read in another encoding",
        "decode the source again as UTF-8; ftfy mends most of it",
        0.0005,
    ),
    "lost": Sign("replacement characters (U+FFFD): the original is lost", "fetch the source again", 0.0005),
    "invisible": Sign(
        "control, zero-width or direction characters, which tokenizers keep", "delete them from the text", 0.001
    ),
    "entities": Sign("HTML entities such as &quot; in the text", "html.unescape() the source", 0.005),
    "placeholder": Sign("placeholders such as {{name}} that nobody filled in", "fill them in", 0.005),
    "template": Sign(
        "special tokens or headings of another chat template",
        "take them out, or read the rows in their own format: the template of the model adds its own",
        0.001,
    ),
    "speaker": Sign(
        "answers that go on with another turn (Human:, User:)",
        "cut them there: the model would learn to speak for the user",
        0.001,
    ),
    "unended": Sign(
        "answers that break off in a sentence, or end without a full stop",
        "drop those that were cut off at a limit",
        0.05,
    ),
    "echo": Sign("answers that begin with their prompt", "take the prompt out of the answer", 0.02),
    "refusal": Sign("answers that refuse", "keep only as many as the assistant shall learn to give", 0.05),
    "tie": Sign(
        "ranked answers without a difference in score", "drop them: a tie teaches the reward model little", 0.05
    ),
    "contradiction": Sign("the same answer with two scores", "drop these answers", 0.005),
}

_CONTINUATION = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"  # bytes 80 to BF in Latin-1 and in cp1252
_TEXT_SIGNS = {
    "garbled": re.compile(
        rf"Ã{_CONTINUATION}|Â[\u00a0-\u00bf]|â[€‚]{_CONTINUATION}|[äåæçèé]{_CONTINUATION}{{2}}|ï»¿|ðŸ|锟斤拷|烫烫烫"
    ),
    "lost": re.compile("\ufffd"),
    "invisible": re.compile(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
    ),
    "entities": re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,5});"),
    "placeholder": re.compile(r"\{\{ *[A-Za-z_][\w. ]{0,40}\}\}"),
    "template": re.compile(
        r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|^### ?(?:Instruction|Response|Input):",
        re.MULTILINE,
    ),
}
_SPEAKER = re.compile(r"^(?:Human|User|USER|### ?(?:Human|User)) ?:", re.MULTILINE)
_REFUSAL = re.compile(
    r"as an? (?:AI|artificial|large|language)\b|I(?:['’]m| am) (?:sorry|afraid|unable|not able)|I can(?:not|['’]t)\b"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大型语言模型)|(?:很|非常)?抱歉|对不起|我(?:无法|不能)|申し訳",
    re.IGNORECASE,
)

_ENDS = ".!?…。！？．｡؟।"
_CLOSERS = "\"'”’»›)]}）】」』》〉*_~` "
_GOES_ON = ",、，:：;；-–—(（[“"
_NO_PROSE = re.compile(r"\s*(?:[-*•·–>|#]|\(?\w{1,3}[.)、]|```)")  # a list, a table, a heading, a quotation, a fence
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


def signs(record: Record) -> Iterator[tuple[str, str]]:
    """The name of each of SIGNS that a record shows, once, and an excerpt of where."""
    answers = [answer.content for answer in record.answers]
    whole = "\n".join([*(turn.content for turn in record.prompt), *answers, record.text])
    for name, pattern in _TEXT_SIGNS.items():
        if match := pattern.search(whole):
            yield name, excerpt(whole, match.start())
    for answer in answers:
        if match := _SPEAKER.search(answer):
            yield "speaker", excerpt(answer, match.start())
            break
    scores = [answer.score for answer in record.answers]
    if len(answers) > 1 and None not in scores and imitable(record):
        if len(set(scores)) == 1:
            yield "tie", excerpt(answers[0], 0)
        elif len(set(answers)) < len(set(zip(answers, scores, strict=True))):
            yield "contradiction", excerpt(answers[0], 0)
    if imitable(record):
        yield from _answer_signs(record.prompt[-1].content.strip(), best_answer(record).content.strip())


def _answer_signs(question: str, answer: str) -> Iterator[tuple[str, str]]:
    if not ends(answer):
        yield "unended", excerpt(answer, len(answer))
    if len(question) >= LONG_ENOUGH and answer != question and answer.startswith(question):
        yield "echo", excerpt(answer, 0)
    if match := _REFUSAL.match(answer):
        yield "refusal", excerpt(answer, match.start())


def ends(answer: str) -> bool:
    """Whether an answer seems to be complete: lists, code, tables and short phrases need no final mark."""
    if answer.count("```") % 2:
        return False
    last = answer.rstrip().rpartition("\n")[2].strip()
    bare = last.rstrip(_CLOSERS).rstrip()  # a closing mark may have blanks of any kind before it
    if not bare or bare[-1] in _ENDS or _NO_PROSE.match(last) or bare.split()[-1][0] in "#@":
        return True
    is_prose = len(last.split()) >= 6 or len(_HAN_OR_KANA.findall(last)) >= 12
    return not (is_prose and (bare[-1].isalpha() or bare[-1] in _GOES_ON))


def excerpt(text: str, at: int) -> str:
    """The text around a place, on one line, with what is invisible spelled out."""
    begin = max(0, min(at, len(text) - AROUND) - AROUND)
    end = min(len(text), begin + 2 * AROUND)
    spelled = _TEXT_SIGNS["invisible"].sub(lambda match: f"<U+{ord(match[0]):04X}>", text[begin:end])
    piece = " ".join(spelled.split())
    return f"{'…' * (begin > 0)}{piece}{'…' * (end < len(text))}"


# First character of each range of Unicode, and whose letters they are; what lies between is nobody's.
_RANGES = (
    *((0x41, "Latin"), (0x5B, ""), (0x61, "Latin"), (0x7B, ""), (0xAA, "Latin"), (0x2B0, ""), (0x370, "Greek")),
    *((0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew"), (0x600, "Arabic"), (0x700, "other")),
    *((0x900, "Devanagari"), (0x980, "Indic"), (0xE00, "Thai"), (0xE80, "other"), (0x10A0, "Georgian")),
    *((0x1100, "Hangul"), (0x1200, "other"), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3040, "Kana")),
    *((0x3100, ""), (0x3130, "Hangul"), (0x3190, ""), (0x3400, "Han"), (0xA000, "other"), (0xAC00, "Hangul")),
    *((0xD7B0, ""), (0xF900, "Han"), (0xFB00, ""), (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFEFF, "")),
    *((0xFF21, "Latin"), (0xFF3B, ""), (0xFF41, "Latin"), (0xFF5B, ""), (0xFF66, "Kana"), (0xFFA0, "")),
    (0x20000, "Han"),
)
_STARTS = np.array([0, *(start for start, _ in _RANGES)])
_NAMES = ("", *(name for _, name in _RANGES))
SCRIPTS = tuple(dict.fromkeys(name for name in _NAMES if name))


def script(text: str) -> str:
    """The script of most letters of a text, "Han and Kana" where a tenth of those are kana; "" without letters.

    A script is not a language: Latin letters are English as well as Turkish.
    """
    if text.isascii():
        return "Latin" if re.search("[A-Za-z]", text) else ""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    ranges = np.bincount(np.searchsorted(_STARTS, points, side="right") - 1, minlength=len(_NAMES))
    letters = dict.fromkeys(SCRIPTS, 0)
    for name, count in zip(_NAMES, ranges.tolist(), strict=True):
        if name:
            letters[name] += count
    kana = letters.pop("Kana")
    is_japanese = 10 * kana >= kana + letters["Han"] > 0 and kana > 0
    letters["Han"] += kana
    most = max(letters, key=letters.__getitem__)
    if not letters[most]:
        return ""
    return "Han and Kana" if most == "Han" and is_japanese else most
