"""One row of any known data format -> one canonical Record.

A format is recognised by its fields and never by the name of its file. To add one: write a function from row to
Record and add a line to `_FORMATS`. Files are opened in `sources.py`; turning records into tokens is not done here.

Reasons in the errors raised here are fragments without a place: the caller knows the file and the line.
"""

import difflib
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from chatsmith.data.templates import Template, fill, kind
from chatsmith.data.turns import checked, is_transcript, messages, prompt_turns, string, transcript
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record, Stage

Row = Mapping[str, Any]

# A prompt next to one of these is not a prompt alone, and reading it as one would throw the answers away.
_MORE_THAN_A_PROMPT = ("answer", "chosen", "completion", "context", "instances", "output", "rejected", "response")
_THUMBS = ("label", "kto_tag")
_SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True, eq=False)
class _Format:
    """A format fits a row that has all `required` fields; `read` is called with the row and their names.

    `explains` are fields that published sets of this format carry beside them and that say nothing new.
    """

    name: str
    required: tuple[str, ...]
    read: Callable[..., Record]
    explains: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True


def to_record(row: object, origin: str, *, format: str | None = None) -> Record:
    """Reads one row, an object or a string of plain text, as a Record; a field that is null counts as absent.

    Args:
        format: the name of the one to read by, where more than one fits.
    Raises:
        DataError: if no format or more than one fits the row, or a field has the wrong type or content.
    """
    if isinstance(row, str):
        return replace(_plain_text({"text": row}, "text"), origin=origin)
    if not isinstance(row, Mapping):
        raise DataError(f"the record is {kind(row)}, not an object with fields and not a string")
    given = {name: value for name, value in row.items() if value is not None}
    found = _fitting(given, row, format)
    record = found.read(given, *found.required)
    if record.prompt:
        record = _with_system(_without_bad_answer(record, given), given)
    return replace(record, fields=row, origin=origin)


def format_names() -> list[str]:
    """The names that `to_record` knows."""
    return list(dict.fromkeys(format.name for format in _FORMATS))


def stages_of(record: Record) -> tuple[Stage, ...]:
    """The stages that a record's fields can serve: sft with an answer, reward with two scored ones, rl, ptx."""
    stages: list[Stage] = []
    if record.answers:
        stages.append("sft")
    if sum(answer.score is not None for answer in record.answers) >= 2:
        stages.append("reward")
    if record.prompt:
        stages.append("rl")
    if record.text:
        stages.append("ptx")
    return tuple(stages)


def best_answer(record: Record) -> Answer:
    """The answer that stage 1 learns: the best-scored one, the first of equals."""
    return max(record.answers, key=lambda answer: answer.score or 0.0)


def _fitting(given: Row, row: Row, name: str | None) -> _Format:
    fitting = [format for format in _with_fields(frozenset(given)) if format.fits(given)]
    if name is not None:
        fitting = [format for format in fitting if format.name == name]
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
    return rivals[0]


@lru_cache(maxsize=1024)
def _with_fields(fields: frozenset[str]) -> tuple[_Format, ...]:
    return tuple(format for format in _FORMATS if fields.issuperset(format.required))


@lru_cache(maxsize=1024)
def _rivals(fitting: tuple[_Format, ...]) -> tuple[_Format, ...]:
    # prompt + chosen + rejected is also "a prompt", and "chosen + rejected": what another one accounts for is no rival
    return tuple(format for format in fitting if not any(_accounts_for(other, format) for other in fitting))


def _accounts_for(format: _Format, other: _Format) -> bool:
    return other is not format and set(other.required) <= {*format.required, *format.explains}


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
    near = {name: difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75) for name in fields[:50]}
    meant = [f'"{name}" as "{found[0]}"' for name, found in near.items() if found and found[0] != name]
    if meant:
        return f"Did you mean {', '.join(meant)}? "
    lacking = [(len(format.required), set(format.required).difference(fields)) for format in _FORMATS]
    most = max((size for size, missing in lacking if len(missing) == 1 < size), default=0)
    missing = sorted({name for size, names in lacking if size == most and len(names) == 1 for name in names})
    return f"Missing is {' or '.join(missing)}. " if missing else ""


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _fields(row: Row) -> str:
    return ", ".join(f"{name} (null)" if value is None else str(name) for name, value in row.items()) or "none"


# What may stand beside the fields of any format.


def _without_bad_answer(record: Record, row: Row) -> Record:
    """A thumb up or down (KTO): an answer marked bad must not become one to imitate, so only its prompt is kept."""
    marked_bad = any(row.get(name) is False for name in _THUMBS)
    return replace(record, answers=()) if marked_bad and len(record.answers) == 1 else record


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
    return _compared(row, chosen, rejected, before=_question(row, prompt), strip=_breaks_off(question))


def _pair_after_turns(row: Row, turns: str, chosen: str, rejected: str) -> Record:
    """The turns so far, and the next one twice (LLaMA-Factory, ColossalChat)."""
    return _compared(row, chosen, rejected, before=messages(row[turns], turns), strip=False)


def _pair(row: Row, chosen: str, rejected: str) -> Record:
    """Two conversations, or two transcripts (hh-rlhf), that differ in the last turn."""
    return _compared(row, chosen, rejected, before=(), strip=False)


def _scored_answers(row: Row, prompt: str, answers: str) -> Record:
    """K answers: strings, or objects with their score or rank, or scores or ranks in a list of their own."""
    items = row[answers]
    if not isinstance(items, list) or not items:
        raise DataError(f'"{answers}" is {kind(items) if items != [] else "an empty list"}, not a list of answers')
    contents: list[str] = []
    scores: list[Any] = []
    for i, item in enumerate(items):
        where = f"{answers}[{i}]"
        if isinstance(item, Mapping):
            key = next((key for key in ("content", "text", "answer", "response") if item.get(key) is not None), None)
            if key is None:
                raise DataError(f'"{where}" has none of content, text, answer and response')
            contents.append(string(item[key], f"{where}.{key}"))
            score = item.get("overall_score") if item.get("score") is None else item.get("score")
            scores.append(_score(score, item.get("rank"), where))
        else:
            contents.append(string(item, where))
            scores.append(None)
    for listed in ("scores", "ranks"):
        if listed not in row:
            continue
        values = row[listed]
        if not isinstance(values, list) or len(values) != len(items):
            raise DataError(f'"{listed}" must be a list with one number for each of the {len(items)} {answers}')
        if any(score is not None for score in scores):
            raise DataError(f'the answers have scores twice, and "{listed}" is one of them; keep one of the two')
        scores = [
            _score(value, None, f"{listed}[{i}]") if listed == "scores" else _score(None, value, f"{listed}[{i}]")
            for i, value in enumerate(values)
        ]
    return _scored(_question(row, prompt), contents, scores)


def _sampled_solutions(row: Row, prompt: str, answers: str, right: str) -> Record:
    """Sampled solutions, each marked right or wrong (Qwen2.5-Math)."""
    return _scored_answers({**row, "scores": row[right]}, prompt, answers)


def _better_of_two(row: Row, prompt: str, first: str, second: str, better: str) -> Record:
    """Two answers and the number, 0 or 1, of the better one (SafeRLHF)."""
    if isinstance(row[better], bool) or row[better] not in (0, 1):
        raise DataError(f'"{better}" is {reprlib.repr(row[better])}, neither 0 nor 1')
    order = (second, first) if row[better] == 1 else (first, second)
    return _compared(row, *order, before=_question(row, prompt), strip=False)


def _weighed(row: Row, prompt: str, first: str, second: str, preference: str) -> Record:
    """Two answers and a preference between 1, the first, and 2, the second (AlpacaEval)."""
    weight = _score(row[preference], None, preference)
    if weight is None or not 1 <= weight <= 2:
        raise DataError(f'"{preference}" is {weight}, not between 1 (the first answer) and 2 (the second)')
    contents = [string(row[name], name) for name in (first, second)]
    return _scored(_question(row, prompt), contents, [2 - weight, weight - 1])


def _passages(row: Row, query: str, positive: str, negative: str) -> Record:
    """A query and passages that answer it or do not (MIRACL): the first of each; some queries have none that does."""
    templates = {"prompt": "{query}", "chosen": "{positive_passages[0].text}"}
    if row[negative] == []:
        return _one_answer({"prompt": row[query], "answer": fill(templates["chosen"], row)}, "prompt", "answer")
    return _as(**templates, rejected="{negative_passages[0].text}")(row)


def _one_answer(row: Row, prompt: str, answer: str) -> Record:
    """A prompt and an answer, which may be text, a message, or the turns that follow the prompt."""
    before, value = _question(row, prompt), row[answer]
    if isinstance(value, list | Mapping):
        return _answered((*before, *messages(value, answer)), answer)
    return checked(before, [Answer(_finished(string(value, answer), row[prompt]))])


def _chat(row: Row, turns: str) -> Record:
    """A conversation; one that ends with a user turn is a prompt without an answer."""
    whole = messages(row[turns], turns)
    return _answered(whole, turns) if whole[-1].role == "assistant" else checked(whole, [])


def _only_instance(row: Row, instruction: str, instances: str) -> Record:
    """An instruction with one instance of input and output (seed tasks of self-instruct)."""
    items = row[instances]
    if not isinstance(items, list) or len(items) != 1 or not isinstance(items[0], Mapping):
        count = f"{len(items)} items" if isinstance(items, list) else kind(items)
        raise DataError(f'"{instances}" is {count}, not one object; a recipe opens it with rows = "{instances}[]"')
    instance = {name: value for name, value in items[0].items() if value is not None}
    if "output" not in instance:
        raise DataError(f'"{instances}[0]" has no output')
    return _one_answer({**instance, instruction: row[instruction]}, instruction, "output")


def _first_turn(row: Row, turns: str) -> Record:
    """User turns without the answers between them (MT-Bench): the first is a prompt, the others stay in the fields."""
    items = row[turns]
    if not isinstance(items, list) or not items:
        raise DataError(f'"{turns}" is {kind(items) if items != [] else "an empty list"}, not a list of user turns')
    return checked([Message("user", string(items[0], f"{turns}[0]"))], [])


def _plain_prompt(row: Row, prompt: str) -> Record:
    """A prompt, and nothing beside it that looks like an answer."""
    if any(str(name).startswith(_MORE_THAN_A_PROMPT) for name in row):
        raise _no_format(row)
    return checked(_question(row, prompt), [])


def _plain_text(row: Row, text: str) -> Record:
    """Text for language modelling."""
    words = string(row[text], text)
    if not words.strip():
        raise DataError("the text is empty")
    return Record(text=words)


def _as(**templates: Template) -> Callable[..., Record]:
    """The reader of a format that is another one under other names."""

    def read(row: Row, *names: str) -> Record:
        return to_record({name: fill(template, row) for name, template in templates.items()}, "")

    return read


def _ends_as_vicuna_does(row: Row) -> bool:
    return isinstance(row["label"], str) and isinstance(row["prompt"], str) and is_transcript(row["prompt"])


_FORMATS = (
    # UltraFeedback repeats the chosen conversation as `messages`, rm-static the chosen answer as `response`
    _Format("preference", ("prompt", "chosen", "rejected"), _pair_after_prompt, ("messages", "response")),
    _Format("preference", ("question", "chosen", "rejected"), _pair_after_prompt),
    _Format("preference", ("instruction", "chosen", "rejected"), _pair_after_prompt),
    _Format("preference", ("context", "chosen", "rejected"), _pair_after_turns),
    _Format("ShareGPT preference", ("conversations", "chosen", "rejected"), _pair_after_turns),
    _Format("preference of conversations", ("chosen", "rejected"), _pair, ("messages",)),
    _Format("preference of conversations", ("chosen_messages", "rejected_messages"), _pair),
    _Format("scored answers", ("prompt", "answers"), _scored_answers),
    _Format("scored answers", ("prompt", "responses"), _scored_answers),
    _Format("scored answers", ("prompt", "completions"), _scored_answers),
    _Format("scored answers", ("instruction", "completions"), _scored_answers),
    _Format("sampled solutions", ("query", "response", "score"), _sampled_solutions, ("question", "answer")),
    _Format("SafeRLHF", ("prompt", "response_0", "response_1", "better_response_id"), _better_of_two),
    _Format("AlpacaEval", ("instruction", "output_1", "output_2", "preference"), _weighed),
    _Format(
        "WebGPT",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        _as(prompt="{question.full_text}", answers=["{answer_0}", "{answer_1}"], scores=["{score_0}", "{score_1}"]),
    ),
    _Format(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        _as(
            prompt="{history}",
            chosen={"by": "labels", "1": "{human_ref_A}", "0": "{human_ref_B}"},
            rejected={"by": "labels", "1": "{human_ref_B}", "0": "{human_ref_A}"},
        ),
    ),
    _Format("MIRACL", ("query", "positive_passages", "negative_passages"), _passages),
    # Stanford Alpaca carries instruction, input and output once more, set in its own template, as `text`
    _Format("alpaca", ("instruction", "output"), _one_answer, ("text",)),
    _Format("alpaca", ("instruction", "response"), _one_answer),
    # UltraChat repeats the first user message as `prompt`
    _Format("chat", ("messages",), _chat, ("prompt",)),
    _Format("ShareGPT", ("conversations",), _chat),
    _Format("question and answer", ("question", "answer"), _one_answer),
    _Format("question and answer", ("question", "response"), _one_answer),
    _Format("question and answer", ("query", "response"), _one_answer),
    _Format("question and answer", ("problem", "solution"), _one_answer, ("answer",)),
    _Format("question and answer", ("problem", "answer"), _one_answer),
    _Format("question and answer", ("INSTRUCTION", "RESPONSE"), _one_answer),
    _Format("prompt and answer", ("prompt", "answer"), _one_answer),
    _Format("prompt and answer", ("prompt", "response"), _one_answer),
    _Format("prompt and answer", ("prompt", "completion"), _one_answer),
    # a label is an answer only here: beside other prompts it may be a thumb, or what a reward function looks for
    _Format("prompt and answer", ("prompt", "label"), _one_answer, fits=_ends_as_vicuna_does),
    _Format("HC3", ("question", "human_answers"), _as(prompt="{question}", answer="{human_answers[0]}")),
    # its `answer` is a span of the sentence
    _Format(
        "JaQuAD", ("question", "sentence", "paragraph"), _as(prompt="{question}", answer="{sentence}"), ("answer",)
    ),
    _Format("JaQuAD", ("questions", "paragraph"), _as(prompt="{questions[0]}", answer="{paragraph}")),
    _Format("seed task", ("instruction", "instances"), _only_instance),
    _Format("user turns", ("turns",), _first_turn),
    _Format("plain prompt", ("prompt",), _plain_prompt),
    _Format("plain prompt", ("instruction",), _plain_prompt),
    _Format("plain text", ("text",), _plain_text),
)


# The parts that the formats share.


def _question(row: Row, name: str) -> tuple[Message, ...]:
    """The prompt in a field; an instruction may have an input, and a history of earlier turns, beside it."""
    if name != "instruction":
        return prompt_turns(row[name], name)
    instruction = string(row[name], name)
    context = string(row.get("input", row.get("context", "")), "input" if "input" in row else "context")
    history = row.get("history", [])
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError('"history" is no list of [instruction, answer] pairs')
    earlier = [
        message
        for i, (asked, answer) in enumerate(history)
        for message in (
            Message("user", string(asked, f"history[{i}][0]")),
            Message("assistant", string(answer, f"history[{i}][1]")),
        )
    ]
    return (*earlier, Message("user", f"{instruction}\n\n{context}" if context.strip() else instruction))


def _answered(turns: Sequence[Message], name: str) -> Record:
    """The record of a whole conversation, of which the last turn is the answer."""
    if turns[-1].role != "assistant":
        raise DataError(f'"{name}" ends with a turn of role {turns[-1].role}, not with an answer')
    return checked(turns[:-1], [Answer(turns[-1].content)])


def _compared(row: Row, chosen: str, rejected: str, *, before: tuple[Message, ...], strip: bool) -> Record:
    """The record of two conversations that share all turns but the last."""
    better = _conversation(row[chosen], chosen, before=before, strip=strip)
    worse = _conversation(row[rejected], rejected, before=before, strip=strip)
    for name, turns in ((chosen, better), (rejected, worse)):
        if turns[-1].role != "assistant":
            raise DataError(f'"{name}" ends with a turn of role {turns[-1].role}, not with an answer')
    if better[:-1] != worse[:-1]:
        shared = next(
            (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
        )
        raise DataError(f'"{chosen}" and "{rejected}" part at turn {shared + 1}, before their last assistant turn')
    answer, other = better[-1].content, worse[-1].content
    return _scored(better[:-1], [answer, other], [0.5, 0.5] if answer == other else [1.0, 0.0])


def _conversation(value: Any, name: str, *, before: tuple[Message, ...], strip: bool) -> tuple[Message, ...]:
    """One side of a pair with its prompt: the turns `before` go first unless the value brings its own."""
    if isinstance(value, str):
        text = string(value, name)
        if is_transcript(text):
            return transcript(text)
        if not before:
            raise DataError(
                f'"{name}" is neither a transcript (Human: ..., Assistant: ...) nor a list of messages, '
                "and there is no prompt beside it"
            )
        return (*before, Message("assistant", text.strip() if strip else text))
    turns = messages(value, name)
    return (*before, *turns) if turns[0].role == "assistant" else turns


def _scored(prompt: Sequence[Message], contents: Sequence[str], scores: Sequence[Any]) -> Record:
    """Scores are numbers, None, or marks (true is right): answers that are all marked wrong leave the prompt alone."""
    if len({score is None for score in scores}) == 2:
        raise DataError(f"answer {scores.index(None)} has no score although others have; score all or none")
    answers = [
        Answer(content, None if score is None else float(score))
        for content, score in zip(contents, scores, strict=True)
    ]
    record = checked(prompt, answers)
    return replace(record, answers=()) if all(score is False for score in scores) else record


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
