"""`constraints`: the share of a prompt's instructions that an answer follows; `constraints-strict`: 1 if all, else 0.

The row says which they are as IFEval's does: `instruction_id_list`, and `kwargs` with an object for each of them. What
each asks for is defined by Zhou et al. 2023, arXiv:2311.07911, table 1, and by their program
(google-research/instruction_following_eval). Here keywords are words, not regular expressions, sentences are counted
without a trained model, and the language of an answer is not judged.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from chatsmith.rewards.judged import Judged
from chatsmith.rewards.shape import is_without_blanks
from chatsmith.types import Record, Sample

IDS, ARGUMENTS = "instruction_id_list", "kwargs"
MISSING = f"its row has no lists {IDS} and {ARGUMENTS} of the same length"
UNKNOWN = f"none of the instructions in {IDS} of its row can be judged"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ABBREVIATIONS = frozenset(
    {
        *("mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "inc", "ltd", "co", "corp", "fig", "approx"),
        *("e.g", "i.e", "u.s", "u.k", "a.m", "p.m", "ph.d"),
    }
)


class Malformed(Exception):
    """Arguments of an instruction that are none."""


class Arguments:
    """What `kwargs` says of one instruction.

    Raises:
        Malformed: from each method, if what is asked for is not there.
    """

    def __init__(self, id: str, given: Any) -> None:
        self._id, self._given = id, given if isinstance(given, Mapping) else {}

    def text(self, name: str) -> str:
        return self._checked(name, self._given.get(name))

    def texts(self, name: str) -> list[str]:
        values = self._given.get(name)
        if not isinstance(values, list) or not values:
            raise self._malformed(name)
        return [self._checked(name, value) for value in values]

    def count(self, name: str) -> int:
        value: Any = self._given.get(name)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0 or value != int(value):
            raise self._malformed(name)
        return int(value)

    def holds(self, count: int, number: str, relation: str = "relation") -> bool:
        """Whether a count is less than, or at least, what is asked for."""
        limit, word = self.count(number), self._given.get(relation)
        if word not in ("less than", "at least"):
            raise self._malformed(relation)
        return count < limit if word == "less than" else count >= limit

    def _checked(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._malformed(name)
        return value.strip()

    def _malformed(self, name: str) -> Malformed:
        return Malformed(f'{ARGUMENTS} of its row has no proper "{name}" for {self._id}')


def share(sample: Sample) -> Judged:
    followed = _followed(sample.record, sample.answer)
    return followed if isinstance(followed, str) else sum(followed) / len(followed)


def strict(sample: Sample) -> Judged:
    followed = _followed(sample.record, sample.answer)
    return followed if isinstance(followed, str) else float(all(followed))


def unfit(record: Record) -> str:
    followed = _followed(record, "an answer")
    return followed if isinstance(followed, str) else ""


def unjudged(record: Record) -> list[str]:
    """The instructions of a record that are not known here."""
    return [f"instruction {id}" for id, _ in _instructions(record) or () if id not in CHECKS]


def _instructions(record: Record) -> list[tuple[str, Any]] | None:
    ids, given = record.fields.get(IDS), record.fields.get(ARGUMENTS)
    if not isinstance(ids, list) or not isinstance(given, list) or len(ids) != len(given) or not ids:
        return None
    return list(zip(map(str, ids), given, strict=True))


def _followed(record: Record, answer: str) -> list[bool] | str:
    """Of each instruction that is known whether the answer follows it; or why that cannot be said."""
    instructions = _instructions(record)
    if instructions is None:
        return MISSING
    known = [(id, Arguments(id, given)) for id, given in instructions if id in CHECKS]
    try:
        followed = [CHECKS[id](answer, arguments) for id, arguments in known]
    except Malformed as error:
        return str(error)
    return [bool(answer.strip()) and each for each in followed] or UNKNOWN


# Each from an answer and what the row says, to whether it is followed. Arguments are read whatever the answer is, and
# no text is gone through more than a few times: answers are hostile.


def _keywords(answer: str, given: Arguments) -> bool:
    return all(word.lower() in answer.lower() for word in given.texts("keywords"))


def _keyword_frequency(answer: str, given: Arguments) -> bool:
    return given.holds(answer.lower().count(given.text("keyword").lower()), "frequency")


def _forbidden_words(answer: str, given: Arguments) -> bool:
    return not any(_stands_in(word, answer) for word in given.texts("forbidden_words"))


def _stands_in(word: str, answer: str) -> bool:
    edge = "" if is_without_blanks(word) else r"\b"
    return re.search(edge + re.escape(word) + edge, answer, re.IGNORECASE) is not None


def _letter_frequency(answer: str, given: Arguments) -> bool:
    return given.holds(answer.lower().count(given.text("letter").lower()), "let_frequency", "let_relation")


def _number_words(answer: str, given: Arguments) -> bool:
    return given.holds(len(re.findall(r"\w+", answer)), "num_words")


def _number_sentences(answer: str, given: Arguments) -> bool:
    return given.holds(count_sentences(answer), "num_sentences")


# the end of a sentence: its signs, then what is closed with it; a full stop counts in front of a blank
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$)|(?<![。！？])[。！？]++[”’」』）]*+")


def count_sentences(text: str) -> int:
    count = start = 0
    for match in _END.finditer(text):
        word = re.split(r"[\s(\"“'‘]", text[max(start, match.start() - 12) : match.start()])[-1]
        is_short = match[0] == "." and (word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper()))
        if is_short and text[match.end() : match.end() + 200].strip():
            continue
        count += _has_word(text[start : match.end()])
        start = match.end()
    return count + _has_word(text[start:])


def _has_word(text: str) -> bool:
    return re.search(r"\w", text) is not None


def _number_paragraphs(answer: str, given: Arguments) -> bool:
    parts = _parts(answer, "***")
    return parts is not None and len(parts) == given.count("num_paragraphs")


def _parts(answer: str, divider: str) -> list[str] | None:
    """What stands between dividers, blank ends left out; None if there is nothing between two of them."""
    first, *others = [part.strip() for part in answer.split(divider)]
    parts = [part for part in (first, *others[:-1]) if part] + [part for part in others[-1:] if part]
    return parts if all(others[:-1]) else None


def _nth_paragraph_first_word(answer: str, given: Arguments) -> bool:
    wanted, number, word = given.count("num_paragraphs"), given.count("nth_paragraph"), given.text("first_word")
    paragraphs = [part.strip() for part in answer.split("\n\n")]
    if sum(map(bool, paragraphs)) != wanted or not 1 <= number <= wanted or not paragraphs[number - 1]:
        return False
    first = paragraphs[number - 1].split()[0].lstrip("'\"")
    return re.split("[.,?!'\"]", first)[0].lower() == word.lower()


def _number_bullets(answer: str, given: Arguments) -> bool:
    lines = [line.strip() for line in answer.split("\n")]
    return sum(line[:1] == "-" or (line[:1] == "*" and line[1:2] not in ("", "*")) for line in lines) == given.count(
        "num_bullets"
    )


def _multiple_sections(answer: str, given: Arguments) -> bool:
    mark, count = given.text("section_spliter"), given.count("num_sections")
    return len(re.findall(re.escape(mark) + r"\s?\d++", answer)) >= count


def _highlighted(answer: str, given: Arguments) -> bool:
    # each pair of stars around **this** is a single highlight of nothing, so the doubled ones are counted by themselves
    single = re.findall(r"\*([^\n*]*+)\*", answer)
    double = re.findall(r"\*\*([^\n*]*+)\*\*", answer)
    return sum(bool(text.strip()) for text in (*single, *double)) >= given.count("num_highlights")


def _title(answer: str, given: Arguments) -> bool:
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start:end].strip("<> \t"):
            return True
    return False


def _placeholders(answer: str, given: Arguments) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*+\]", answer)) >= given.count("num_placeholders")


def _postscript(answer: str, given: Arguments) -> bool:
    mark = given.text("postscript_marker").lower()
    pattern = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s", "p.p.s.": r"p\.\s?p\.\s?s"}.get(mark, re.escape(mark))
    return re.search(pattern, answer.lower()) is not None


def _is_json(answer: str, given: Arguments) -> bool:
    inside = re.sub(r"^```(?:json)?", "", answer.strip(), flags=re.IGNORECASE).removesuffix("```").strip()
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(answer: str, given: Arguments) -> bool:
    parts = _parts(answer, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _repeat_prompt(answer: str, given: Arguments) -> bool:
    return answer.strip().lower().startswith(given.text("prompt_to_repeat").lower())


def _end_phrase(answer: str, given: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(given.text("end_phrase").lower())


def _quotation(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(answer: str, given: Arguments) -> bool:
    words = re.findall(r"\w+(?:[-.']\w+)*", answer)
    return given.holds(sum(word.isupper() for word in words), "capital_frequency", "capital_relation")


CHECKS: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:postscript": _postscript,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:number_bullet_lists": _number_bullets,
    "detectable_format:constrained_response": lambda answer, given: any(option in answer for option in OPTIONS),
    "detectable_format:number_highlighted_sections": _highlighted,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_phrase,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda answer, given: answer.isupper(),
    "change_case:english_lowercase": lambda answer, given: answer.islower(),
    "punctuation:no_comma": lambda answer, given: "," not in answer,
}
"""Of the 25 instructions of IFEval all but the language of the answer."""
