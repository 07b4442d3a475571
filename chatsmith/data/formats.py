"""One row of any known data format -> one canonical Record.

A format is recognised by its fields and never by the name of its file. To add one: write a function from row to
Record and add a line to `_FORMATS`. Files are opened in `sources.py`; turning records into tokens is not done here.

Reasons in the errors raised here are fragments without a place: the caller knows the file and the line.
"""

import reprlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from chatsmith.data.fields import Fields, is_empty, is_said, meant, repeated, stands_in, words
from chatsmith.data.marks import is_mark, is_rank, is_score, mark_of, meaning, the_mark
from chatsmith.data.spec import ASKING, COMPARING, IMITATING, RANKING, READING
from chatsmith.data.templates import Template, fill, kind
from chatsmith.data.turns import (
    alternating,
    checked,
    continued,
    is_transcript,
    messages,
    prompt_turns,
    refuse_weight_of_record,
    string,
    transcript,
)
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record, Stage

Row = Mapping[str, Any]

# A prompt next to one of these is not a prompt alone, and reading it as one would throw the answers away.
_MORE_THAN_A_PROMPT = (
    *("answer", "chosen", "completion", "context", "instances", "output", "rejected", "reply", "response", "selected"),
)
NEEDS: Mapping[Stage, str] = {
    IMITATING: "an answer that may be imitated",
    COMPARING: "two answers with scores, or a mark",
    RANKING: "two answers with scores",
    ASKING: "a prompt",
    READING: "plain text or an answer",
}
_SYSTEM = ("system", "system_prompt")
_BESIDE = (*_SYSTEM, "context", "history", "input")  # what a prompt may have beside it
_ONE_OF_MANY = frozenset(("children", "replies", "role", "sender", "speaker"))  # a text that has such is a turn
_WHICH_IS_BEST = frozenset(("best", "better", "choice", "correct", "preference", "preferred", "winner"))
_MOST_FIELDS = 10_000  # of a record
_MOST_NAMED = 100  # of them in a message
_CONTENT = ("content", "text", "answer", "response")  # of an answer that is an object


@dataclass(frozen=True, eq=False)
class _Format:
    """A format fits a row that has all `required` fields; `read` is called with the row and their names.

    `explains` are fields that published sets of this format carry beside them, so that other formats seem to fit; what
    is left `aside` is so knowingly, whatever its name says.
    """

    name: str
    required: tuple[str, ...]
    read: Callable[..., Record]
    explains: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True
    aside: tuple[str, ...] = ()


def to_record(row: object, origin: str, *, format: str | None = None, used: Collection[str] = ()) -> Record:
    """Reads one row, an object, a list of messages or a string of plain text, as a Record.

    A field that is null counts as absent. A field that is not used is named in `Record.unused`, and refused if it holds
    part of the conversation that stands nowhere else in the record.

    Args:
        format: the name of the one to read by, where more than one fits.
        used: names of fields that the caller reads.
    Raises:
        DataError: if no format or more than one fits the row, a field has the wrong type or content, or is lost.
    """
    if isinstance(row, str):
        return replace(_plain_text({"text": row}, "text"), origin=origin)
    if isinstance(row, list) and row and all(isinstance(item, Mapping) for item in row):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DataError(f"the record is {kind(row)}, not an object with fields and not a string")
    if len(row) > _MOST_FIELDS:
        raise DataError(f"the record has {len(row)} fields, more than {_MOST_FIELDS}; is it a table of records?")
    fields = Fields({name: value for name, value in _with_known_names(row).items() if value is not None})
    found, others = _fitting(fields.peek(), row, format)
    record = found.read(fields, *found.required)
    if record.prompt:
        refuse_weight_of_record(fields)
        record = _with_system(_judged(record, fields), fields)
    unread = {path: values for path, values in fields.unread().items() if path not in (*found.required, *used)}
    known = {*found.aside, *(name for other in others for name in other.required)}
    _refuse_losses(record, found, {path: values for path, values in unread.items() if path not in known})
    return replace(record, fields=row, origin=origin, unused=tuple(unread))


def format_names() -> list[str]:
    """The names that `to_record` knows."""
    return list(dict.fromkeys(format.name for format in _FORMATS))


def stages_of(record: Record) -> tuple[Stage, ...]:
    """The stages that a record's fields can serve: sft with an answer, reward with two scored ones, pairs with a marked
    one too, rl, ptx.
    """
    good = imitable(record)
    are_scored = bool(good) and sum(answer.score is not None for answer in record.answers) >= 2
    serves = {
        IMITATING: bool(good),
        COMPARING: are_scored or any(answer.is_marked for answer in record.answers),
        RANKING: are_scored,
        ASKING: bool(record.prompt),
        READING: bool(record.text),
    }
    return tuple(stage for stage, can in serves.items() if can)


def unable(record: Record, stages: Collection[Stage]) -> list[Stage]:
    """The stages among these that a record cannot serve; an answered prompt is good text too."""
    able = stages_of(record)
    return [stage for stage in stages if stage not in able and not (stage == READING and IMITATING in able)]


def imitable(record: Record) -> tuple[Answer, ...]:
    """The answers that may be imitated: all but those marked bad."""
    return tuple(answer for answer in record.answers if not (answer.is_marked and (answer.score or 0.0) < 0))


def best_answer(record: Record) -> Answer:
    """The answer that stage 1 learns: the best-scored one that may be imitated, the first of equals."""
    return max(imitable(record), key=lambda answer: answer.score or 0.0)


def _fitting(given: Row, row: Row, name: str | None) -> tuple[_Format, list[_Format]]:
    """The format of a row, and those that fit too and were not meant."""
    others = [format for format in _with_fields(frozenset(given)) if format.fits(given)]
    fitting = others
    if name is not None:
        fitting = [format for format in others if format.name == name]
        if not fitting:
            needs = " or ".join(" + ".join(format.required) for format in _FORMATS if format.name == name)
            raise DataError(f'the format "{name}" needs {needs}, and the record has the fields: {_fields(row)}')
    if not fitting:
        raise _no_format(row)
    rivals = _rivals(tuple(fitting))
    if len(rivals) > 1:
        names = " and ".join(f'"{format.name}" ({", ".join(format.required)})' for format in rivals)
        raise DataError(
            f"the record fits more than one format: {names}. Keep the fields of one, or say which in a recipe, "
            f'as in format = "{rivals[0].name}"'
        )
    return rivals[0], others if name is not None else []


def _with_known_names(row: Row) -> Row:
    """The row with the names that formats know as they spell them: `Prompt` and ` PROMPT` are `prompt`."""
    names = _known_names(tuple(map(str, row)))
    return row if names is None else dict(zip(names, row.values(), strict=True))


@lru_cache(maxsize=1024)
def _known_names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The same names, some of them spelt otherwise; None if none is."""
    spelt = {name.lower(): name for name in _NAMES}
    plain = [name.strip().lower() for name in names]
    known = tuple(spelt.get(p, p if is_mark(p) else name) for name, p in zip(names, plain, strict=True))
    twice = repeated(known)
    if twice is not None:
        alike = " and ".join(f'"{name}"' for name, p in zip(names, known, strict=True) if p == twice)
        raise DataError(f"the fields {alike} differ in letter case or blanks alone; keep one of them")
    return None if known == names else known


@lru_cache(maxsize=1024)
def _with_fields(fields: frozenset[str]) -> tuple[_Format, ...]:
    return tuple(format for format in _FORMATS if fields.issuperset(format.required))


@lru_cache(maxsize=1024)
def _rivals(fitting: tuple[_Format, ...]) -> tuple[_Format, ...]:
    # prompt + chosen + rejected is also "a prompt", and "chosen + rejected": what another one accounts for is no rival
    accounted = [(other, {*other.required, *other.explains}) for other in fitting]
    return tuple(
        format
        for format in fitting
        if not any(names.issuperset(format.required) for other, names in accounted if other is not format)
    )


def _no_format(row: Row) -> DataError:
    inside = next((name for name, value in row.items() if _is_list_of_objects(value)), None)
    remedy = _likely_mistake(tuple(str(name) for name, value in row.items() if value is not None))
    if not remedy and inside is not None:
        remedy = f'If its records are those of "{inside}", a recipe opens it with rows = "{inside}[]". '
    return DataError(
        f"no format fits a record with the fields: {_fields(row)}. {remedy}docs/data.md lists the formats, and how a "
        "recipe maps other columns"
    )


@lru_cache(maxsize=1024)
def _likely_mistake(fields: tuple[str, ...]) -> str:
    """Fields that are spelt otherwise, or the one that is missing to the formats that they come nearest to."""
    known = sorted({name for format in _FORMATS for name in format.required})
    present = frozenset(fields)
    near = {name: meant(name, known, present) for name in fields[:50] if name not in known}
    spelt = [f'"{name}" as "{found}"' for name, found in near.items() if found]
    if spelt:
        return f"Did you mean {', '.join(spelt)}? "
    lacking = [(len(format.required), set(format.required) - present) for format in _FORMATS]
    most = max((size for size, missing in lacking if len(missing) == 1 < size), default=0)
    missing = sorted({name for size, names in lacking if size == most and len(names) == 1 for name in names})
    return f"Missing is {' or '.join(missing)}. " if missing else ""


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _fields(row: Row) -> str:
    names = [f"{name} (null)" if value is None else str(name) for name, value in islice(row.items(), _MOST_NAMED)]
    more = f", and {len(row) - _MOST_NAMED} more" if len(row) > _MOST_NAMED else ""
    return (", ".join(names) or "none") + more


# What may stand beside the fields of any format.


def _judged(record: Record, row: Fields) -> Record:
    """The record with what the row says of its only answer: a mark (KTO), or else a score."""
    free = [name for name in row if not row.was_read(name)]
    marks = [name for name in free if is_mark(name)]
    if len(record.answers) > 1:
        bad = next((name for name in marks if meaning(name, row.peek()[name]) is False), None)
        if bad is not None:
            raise DataError(f'"{bad}" is {row[bad]}, and of which of the {len(record.answers)} answers is unknown')
    if len(record.answers) != 1 or record.answers[0].score is not None:
        return record
    said: float | bool | None = the_mark(row, marks)
    if said is None:
        numbers = (_number(row, name) for name in free if is_score(name))
        said = next((number for number in numbers if number is not None), None)
    return record if said is None else replace(record, answers=(_answer(record.answers[0].content, said),))


def _answer(content: str, score: float | bool | None) -> Answer:
    """An answer whose score, if it is true or false, is a mark."""
    if isinstance(score, bool):
        return Answer(content, 1.0 if score else -1.0, is_marked=True)
    return Answer(content, score)


def _number(row: Row, name: str) -> float | bool | None:
    """The score of an only answer; a table of text has it as text, and some have words for it."""
    value = row[name]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return mark_of(name, value)
    return _score(value, None, name)


def _refuse_losses(record: Record, format: _Format, unread: Mapping[str, list[Any]]) -> None:
    """A field that is not used must be no part of what was said, unless the record says it elsewhere."""
    if not unread:
        return
    asked, answered = [turn.content for turn in record.prompt], [answer.content for answer in record.answers]
    whole = "\n".join([*asked, *answered, record.text])
    for path, values in unread.items():
        lost = [value for value in values if is_said(path, value) and not stands_in(value, whole)]
        if lost:
            raise DataError(
                f'"{path}" seems to hold part of the conversation ({reprlib.repr(lost[0])}), and the format '
                f'"{format.name}" does not use it: map it in a recipe, or leave the field out'
            )
    count = len(record.answers)
    unscored = count > 1 and all(answer.score is None for answer in record.answers)
    for path, values in unread.items() if count > 1 else ():
        listed = isinstance(values[0], list) and len(values[0]) == count and all(map(_is_number, values[0]))
        if listed or (unscored and _WHICH_IS_BEST.intersection(words(path))) or (unscored and is_mark(path)):
            raise DataError(
                f'"{path}" seems to say which of the {count} answers is better, in a way that is not known: write a '
                'list of "scores" (the higher the better) or "ranks" (1 is the best), or leave the field out'
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _with_system(record: Record, row: Row) -> Record:
    name = next((name for name in _SYSTEM if name in row), None)
    text = string(row[name], name) if name is not None else ""
    if not text.strip():
        return record
    if record.prompt[0].role == "system":
        raise DataError(f'there is a system turn, and a field "{name}" beside it; keep one of them')
    return replace(record, prompt=(Message("system", text), *record.prompt))


# One function per format, each from the non-null fields of a row, and the names of those that it needs, to a Record.


def _pair_after_prompt(row: Row, prompt: str, chosen: str, rejected: str) -> Record:
    """A prompt and two answers: the answers alone, or each a conversation that holds the prompt (UltraFeedback)."""
    question, sides = row[prompt], (row[chosen], row[rejected])
    cut = all(isinstance(side, str) and side.lstrip().startswith("Assistant:") for side in sides)
    if cut and isinstance(question, str) and question.lstrip().startswith("Human:"):
        # a transcript that was cut in front of the last answer's mark (yitingxie/rlhf-reward-datasets)
        whole = {side: f"{question.rstrip()}\n\n{row[side].lstrip()}" for side in (chosen, rejected)}
        return _compared(whole, chosen, rejected, before=(), strip=False)
    before = _question(row, prompt)
    return _compared(row, chosen, rejected, before=before, asked=prompt, strip=_breaks_off(question))


def _pair_after_turns(row: Row, turns: str, chosen: str, rejected: str) -> Record:
    """The turns so far, and the next one twice (LLaMA-Factory, ColossalChat)."""
    return _compared(row, chosen, rejected, before=messages(row[turns], turns), asked=turns, strip=False)


def _last_turn_and_rejected(row: Row, turns: str, rejected: str) -> Record:
    """A conversation, and a worse answer in place of its last one (ms-swift)."""
    *before, answer = messages(row[turns], turns)
    sides = {turns: [{"role": answer.role, "content": answer.content}], rejected: row[rejected]}
    return _compared(sides, turns, rejected, before=tuple(before), asked=turns, strip=False)


def _preferred_output(row: Row, asked: str, better: str, worse: str) -> Record:
    """The preference format of OpenAI: an object with the conversation so far, and the next message twice."""
    given = row[asked]
    if not isinstance(given, Mapping) or "messages" not in given:
        raise DataError(f'"{asked}" is {kind(given)} without "messages"')
    before = messages(given["messages"], f"{asked}.messages")
    return _compared(row, better, worse, before=before, asked=f"{asked}.messages", strip=False)


def _pair(row: Row, chosen: str, rejected: str) -> Record:
    """Two conversations, or two transcripts (hh-rlhf), that differ in the last turn."""
    return _compared(row, chosen, rejected, before=(), strip=False)


def _scored_answers(row: Fields, prompt: str, answers: str, right: str | None = None) -> Record:
    """K answers: strings, or objects with their score or rank, or scores or ranks in a list of their own.

    Args:
        right: the list that marks them right or wrong, where the format says which it is.
    """
    items = row[answers]
    if not isinstance(items, list) or not items:
        raise DataError(f'"{answers}" is {kind(items) if items != [] else "an empty list"}, not a list of answers')
    contents: list[str] = []
    scores: list[Any] = []
    for i, item in enumerate(items):
        where = f"{answers}[{i}]"
        if isinstance(item, Mapping):
            key = next((key for key in _CONTENT if item.get(key) is not None), None)
            if key is None:
                raise DataError(f'"{where}" has none of {", ".join(_CONTENT[:-1])} and {_CONTENT[-1]}')
            contents.append(string(item[key], f"{where}.{key}"))
            name = next(filter(is_score, item), None) if item.get("score") is None else "score"
            mark = the_mark(item, filter(is_mark, item)) if name is None and item.get("rank") is None else None
            scores.append(
                mark if name is None and mark is not None else _score(item.get(name), item.get("rank"), where)
            )
        else:
            contents.append(string(item, where))
            scores.append(None)
    lists = [right] if right is not None else [name for name in row if name not in (prompt, answers)]
    listed = {name: values for name in lists if (values := _listed(row, name, answers, len(items))) is not None}
    if listed and any(score is not None for score in scores):
        raise DataError(
            f'the answers have scores twice, and "{next(iter(listed))}" is one of them; keep one of the two'
        )
    for name, values in listed.items():
        if None not in scores and _order(scores) & {(worse, better) for better, worse in _order(values)}:
            raise DataError(f'"{name}" orders the answers otherwise than another list beside it; keep one of them')
        if None in scores or not is_rank(name):
            scores = values
    return _scored(_question(row, prompt), contents, scores)


def _listed(row: Fields, name: str, answers: str, count: int) -> list[float | bool | None] | None:
    """The scores, ranks or marks that a field has for all answers; None if it is none of these."""
    ranks, marks = is_rank(name), is_mark(name)
    if not (ranks or is_score(name) or marks) or (marks and not isinstance(row.peek()[name], list)):
        return None
    values = row[name]
    if not isinstance(values, list) or len(values) != count:
        raise DataError(f'"{name}" must be a list with one number for each of the {count} {answers}')
    if marks:
        return [mark_of(name, value, f"{name}[{i}]") for i, value in enumerate(values)]
    places = [f"{name}[{i}]" for i in range(count)]
    pairs = [(None, value) if ranks else (value, None) for value in values]
    return [_score(score, rank, place) for (score, rank), place in zip(pairs, places, strict=True)]


def _order(scores: Sequence[Any]) -> set[tuple[int, int]]:
    """The better and the worse of two answers, for all pairs of which one is better."""
    numbers = list(enumerate(scores))
    return {(i, j) for i, a in numbers for j, b in numbers if a is not None and b is not None and a > b}


def _better_of_two(row: Row, prompt: str, first: str, second: str, better: str) -> Record:
    """Two answers and the number, 0 or 1, of the better one (SafeRLHF)."""
    if isinstance(row[better], bool) or row[better] not in (0, 1):
        raise DataError(f'"{better}" is {reprlib.repr(row[better])}, neither 0 nor 1')
    order = (second, first) if row[better] == 1 else (first, second)
    return _compared(row, *order, before=_question(row, prompt), asked=prompt, strip=False)


def _weighed(row: Row, prompt: str, first: str, second: str, preference: str) -> Record:
    """Two answers and a preference between 1, the first, and 2, the second (AlpacaEval)."""
    weight = _score(row[preference], None, preference)
    if weight is None or not 1 <= weight <= 2:
        raise DataError(f'"{preference}" is {weight}, not between 1 (the first answer) and 2 (the second)')
    contents = [string(row[name], name) for name in (first, second)]
    return _scored(_question(row, prompt), contents, [2 - weight, weight - 1])


def _passages(row: Row, query: str, positive: str, negative: str) -> Record:
    """A query and passages that answer it or do not (MIRACL): the first of each; some queries have none that does."""
    asked, best = "{query}", "{positive_passages[0].text}"
    if row[negative] == []:
        return _as(prompt=asked, answer=best)(row)
    return _as(prompt=asked, chosen=best, rejected="{negative_passages[0].text}")(row)


def _one_answer(row: Row, prompt: str, answer: str) -> Record:
    """A prompt and an answer, which may be text, a message, or the turns that follow the prompt."""
    before, value = _question(row, prompt), row[answer]
    if isinstance(value, list | Mapping):
        return _answered(continued(before, messages(value, answer), (prompt, answer)), answer)
    return checked(before, [Answer(_finished(string(value, answer), row[prompt]))])


def _chat(row: Row, turns: str) -> Record:
    """A conversation; one that ends with a user turn is a prompt without an answer."""
    whole = alternating(row[turns], turns) if turns != "messages" else messages(row[turns], turns)
    if "prompt" in row:
        whole = continued(prompt_turns(row["prompt"], "prompt"), whole, ("prompt", turns))
    return _answered(whole, turns) if whole[-1].role == "assistant" else checked(whole, [])


def _only_instance(row: Row, instruction: str, instances: str) -> Record:
    """An instruction with one instance of input and output (seed tasks of self-instruct)."""
    items = row[instances]
    if not isinstance(items, list) or len(items) != 1 or not isinstance(items[0], Mapping):
        count = f"{len(items)} items" if isinstance(items, list) else kind(items)
        raise DataError(f'"{instances}" is {count}, not one object; a recipe opens it with rows = "{instances}[]"')
    if items[0].get("output") is None:
        raise DataError(f'"{instances}[0]" has no output')
    instance = {name: items[0][name] for name in ("input", "output") if items[0].get(name)}
    return _one_answer({**instance, instruction: row[instruction]}, instruction, "output")


def _first_turn(row: Row, turns: str) -> Record:
    """User turns without the answers between them (MT-Bench): the first is a prompt, the others stay in the fields."""
    items = row[turns]
    if not isinstance(items, list) or not items:
        raise DataError(f'"{turns}" is {kind(items) if items != [] else "an empty list"}, not a list of user turns')
    return checked([Message("user", string(items[0], f"{turns}[0]"))], [])


def _plain_prompt(row: Row, prompt: str) -> Record:
    """A prompt, and nothing beside it that looks like an answer."""
    answers = [name for name in _NAMES if name.startswith(_MORE_THAN_A_PROMPT)]
    if any(name.startswith(_MORE_THAN_A_PROMPT) or meant(name, answers) for name in row):
        raise _no_format(row)
    return checked(_question(row, prompt), [])


def _plain_text(row: Row, text: str) -> Record:
    """Text for language modelling."""
    said = string(row[text], text)
    if not said.strip():
        raise DataError("the text is empty")
    turn = next((name for name in row if _ONE_OF_MANY.intersection(words(name))), None)
    if turn is not None:
        raise DataError(
            f'"{turn}" says that the text is one turn of a conversation that is spread over rows; make "messages" of '
            "them first, or leave the field out if it is plain text"
        )
    return Record(text=said)


def _as(**templates: Template) -> Callable[..., Record]:
    """The reader of a format that is another one under other names."""

    def read(row: Row, *names: str) -> Record:
        return to_record({name: fill(template, row) for name, template in templates.items()}, "")

    return read


def _holds_texts(row: Row) -> bool:
    data = row["data"]
    return isinstance(data, list) and all(isinstance(item, str) for item in data)


def _ends_as_vicuna_does(row: Row) -> bool:
    return isinstance(row["label"], str) and isinstance(row["prompt"], str) and is_transcript(row["prompt"])


def _formats(name: str, read: Callable[..., Record], *fields: str, **options: Any) -> list[_Format]:
    """A format whose fields have several names, each of `fields` one set of them."""
    return [_Format(name, tuple(names.split()), read, **options) for names in fields]


_FORMATS = (
    # UltraFeedback repeats the chosen conversation as `messages`, rm-static the chosen answer as `response`
    *_formats(
        *("preference", _pair_after_prompt, "prompt chosen rejected"),
        explains=("messages", "response"),
    ),
    *_formats(
        *("preference", _pair_after_prompt),
        *("question chosen rejected", "instruction chosen rejected", "query chosen rejected"),
        *("prompt response rejected_response", "query response rejected_response"),
        *("instruction response rejected_response", "prompt chosen_response rejected_response"),
    ),
    *_formats(
        *("preference", _pair_after_turns, "context chosen rejected"),
        fits=lambda row: isinstance(row["context"], list) and not is_empty(row["context"]),
    ),
    *_formats("preference", _last_turn_and_rejected, "messages rejected_response"),
    *_formats("OpenAI preference", _preferred_output, "input preferred_output non_preferred_output"),
    *_formats("ShareGPT preference", _pair_after_turns, "conversations chosen rejected"),
    *_formats("preference of conversations", _pair, "chosen rejected", explains=("messages",)),
    *_formats("preference of conversations", _pair, "chosen_messages rejected_messages"),
    *_formats("scored answers", _scored_answers, "prompt answers", "prompt responses", "prompt completions"),
    # UltraFeedback tells with which system text each answer was sampled
    *_formats(
        *("scored answers", _scored_answers, "instruction completions"),
        aside=("completions[].custom_system_prompt",),
    ),
    # Qwen2.5-Math: each marked right or wrong
    *_formats(
        *("sampled solutions", _scored_answers, "query response score"),
        explains=("question", "answer"),
        fits=lambda row: isinstance(row["response"], list),
        aside=("gt_cot", "pred_score"),
    ),
    *_formats("SafeRLHF", _better_of_two, "prompt response_0 response_1 better_response_id"),
    *_formats("AlpacaEval", _weighed, "instruction output_1 output_2 preference"),
    *_formats(
        "WebGPT",
        _as(prompt="{question.full_text}", answers=["{answer_0}", "{answer_1}"], scores=["{score_0}", "{score_1}"]),
        "question answer_0 answer_1 score_0 score_1",
    ),
    *_formats(
        "SHP",
        _as(
            prompt="{history}",
            chosen={"by": "labels", "1": "{human_ref_A}", "0": "{human_ref_B}"},
            rejected={"by": "labels", "1": "{human_ref_B}", "0": "{human_ref_A}"},
        ),
        "history human_ref_A human_ref_B labels",
    ),
    *_formats("MIRACL", _passages, "query positive_passages negative_passages"),
    # Stanford Alpaca carries instruction, input and output once more, set in its own template, as `text`
    *_formats("alpaca", _one_answer, "instruction output", explains=("text", "input")),
    *_formats("alpaca", _one_answer, "instruction response"),
    *_formats("input and output", _one_answer, "input output"),
    # UltraChat repeats the first user message as `prompt`
    *_formats("chat", _chat, "messages", explains=("prompt",)),
    *_formats("ShareGPT", _chat, "conversations", explains=("prompt",)),
    *_formats("UltraChat", _chat, "data", fits=_holds_texts),
    *_formats("question and answer", _one_answer, "question answer", "question response", "query response"),
    *_formats("question and answer", _one_answer, "problem solution", explains=("answer",)),
    *_formats("question and answer", _one_answer, "problem answer"),
    *_formats("prompt and answer", _one_answer, "prompt answer", "prompt response", "prompt completion"),
    # a label is an answer only here: beside other prompts it may be a thumb, or what a reward function looks for
    *_formats("prompt and answer", _one_answer, "prompt label", fits=_ends_as_vicuna_does),
    *_formats("HC3", _as(prompt="{question}", answer="{human_answers[0]}"), "question human_answers"),
    # its `answer` is a span of the sentence
    *_formats(
        *("JaQuAD", _as(prompt="{question}", answer="{sentence}"), "question sentence paragraph"),
        explains=("answer",),
    ),
    *_formats("JaQuAD", _as(prompt="{questions[0]}", answer="{paragraph}"), "questions paragraph"),
    *_formats("seed task", _only_instance, "instruction instances"),
    *_formats("user turns", _first_turn, "turns"),
    *_formats("plain prompt", _plain_prompt, "prompt", "instruction"),
    *_formats("plain text", _plain_text, "text"),
)
_NAMES = frozenset({*_BESIDE, *(name for format in _FORMATS for name in (*format.required, *format.explains))})


# The parts that the formats share.


def _question(row: Row, name: str) -> tuple[Message, ...]:
    """The prompt in a field, with what may stand beside it: earlier turns in `history`, an input, a context.

    An input, or the context of an instruction, follows it; the context of a question goes before it.
    """
    if name == "instruction":
        string(row[name], name)
    turns = prompt_turns(row[name], name)
    beside = "input" if name == "instruction" and "input" in row else "context"
    added = "" if beside == name or is_empty(row.get(beside)) else string(row[beside], beside)
    if added and not stands_in(added, turns[-1].content):
        if len(turns) > 1 or turns[0].role != "user":
            raise DataError(f'"{name}" is a conversation, and where "{beside}" belongs in it is not known')
        parts = (turns[0].content, added) if name == "instruction" else (added, turns[0].content)
        turns = (Message("user", "\n\n".join(parts)),)
    return (*_history(row), *turns) if name != "history" else turns


def _history(row: Row) -> tuple[Message, ...]:
    """Earlier turns: pairs of what was asked and answered, or messages."""
    history = row.get("history")
    if is_empty(history):
        return ()
    if isinstance(history, list) and all(isinstance(turn, Mapping) for turn in history):
        return messages(history, "history")
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError('"history" is no list of [instruction, answer] pairs and none of messages')
    return tuple(
        message
        for i, (asked, answer) in enumerate(history)
        for message in (
            Message("user", string(asked, f"history[{i}][0]")),
            Message("assistant", string(answer, f"history[{i}][1]")),
        )
    )


def _answered(turns: Sequence[Message], name: str) -> Record:
    """The record of a whole conversation, of which the last turn is the answer."""
    if turns[-1].role != "assistant":
        raise DataError(f'"{name}" ends with a turn of role {turns[-1].role}, not with an answer')
    return checked(turns[:-1], [Answer(turns[-1].content)])


def _compared(
    row: Row, chosen: str, rejected: str, *, before: tuple[Message, ...], strip: bool, asked: str = ""
) -> Record:
    """The record of two conversations that share all turns but the last, and begin with those in the field `asked`."""
    better = _conversation(row[chosen], chosen, before=before, asked=asked, strip=strip)
    worse = _conversation(row[rejected], rejected, before=before, asked=asked, strip=strip)
    for name, turns in ((chosen, better), (rejected, worse)):
        if turns[-1].role != "assistant":
            raise DataError(f'"{name}" ends with a turn of role {turns[-1].role}, not with an answer')
    if better[:-1] != worse[:-1]:
        shared = next(
            (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
        )
        raise DataError(f'"{chosen}" and "{rejected}" part at turn {shared + 1}, before their last assistant turn')
    answer, other = better[-1].content, worse[-1].content
    _refuse_contradiction(row, chosen, rejected)
    return _scored(better[:-1], [answer, other], [0.5, 0.5] if answer == other else [1.0, 0.0])


def _refuse_contradiction(row: Row, chosen: str, rejected: str) -> None:
    """Scores of their own (UltraFeedback has score_chosen and score_rejected) must not call the worse answer better."""
    said: dict[str, dict[str, float]] = {chosen: {}, rejected: {}}
    for name, value in row.peek().items() if isinstance(row, Fields) else ():
        for side, scores in said.items():
            rest = [word for word in words(name) if word not in words(side)]
            if _is_number(value) and len(rest) < len(words(name)) and is_score("_".join(rest)):
                scores["_".join(rest)] = float(value)
    for name, score in said[chosen].items():
        if score < said[rejected].get(name, score):
            raise DataError(f'the {name} of "{rejected}" is higher than that of "{chosen}"; which is better is unknown')


def _conversation(
    value: Any, name: str, *, before: tuple[Message, ...], asked: str, strip: bool
) -> tuple[Message, ...]:
    """One side of a pair with its prompt: the turns `before` go first, as far as the value does not bring them."""
    if isinstance(value, str):
        text = string(value, name)
        # with a prompt before it, a dialogue between a user and an AI may be what was asked for
        if is_transcript(text) and (not before or text.lstrip().startswith("Human:")):
            return continued(before, transcript(text), (asked, name))
        if not before:
            raise DataError(
                f'"{name}" is neither a transcript (Human: ..., Assistant: ...) nor a list of messages, '
                "and there is no prompt beside it"
            )
        return (*before, Message("assistant", text.strip() if strip else text))
    return continued(before, messages(value, name), (asked, name))


def _scored(prompt: Sequence[Message], contents: Sequence[str], scores: Sequence[Any]) -> Record:
    """Scores are numbers, None, or marks (true is right)."""
    if len({score is None for score in scores}) == 2:
        raise DataError(f"answer {scores.index(None)} has no score although others have; score all or none")
    if not all(isinstance(score, bool) for score in scores):
        scores = [None if score is None else float(score) for score in scores]
    return checked(prompt, [_answer(content, score) for content, score in zip(contents, scores, strict=True)])


def _breaks_off(prompt: Any) -> bool:
    """Whether a prompt is a transcript, after whose last mark the answer begins with a blank."""
    return isinstance(prompt, str) and is_transcript(prompt)


def _finished(answer: str, prompt: Any) -> str:
    """An answer as its prompt lets it be written: transcripts put blanks around it, and `</s>` behind it."""
    if not _breaks_off(prompt):
        return answer
    return answer.strip().removesuffix("</s>").rstrip() if "ASSISTANT:" in prompt else answer.strip()


def _score(score: Any, rank: Any, where: str) -> float | bool | None:
    """The score of an answer; rank r, 1 being the best, counts as score -r."""
    if score is not None and rank is not None:
        raise DataError(f'"{where}" has both a score and a rank; keep one of them')
    value = rank if score is None else score
    if value is None or (rank is None and isinstance(value, bool)):
        return None if value is None else bool(value)
    if not isinstance(value, int | float) or not -sys.float_info.max <= value <= sys.float_info.max:
        raise DataError(f'"{where}" has {kind(value)} where a finite number is due as its score or rank')
    return float(value) if rank is None else -float(value)
