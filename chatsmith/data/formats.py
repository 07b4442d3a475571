"""One row of any known data format -> one canonical Record.

A format is recognised by its fields and never by the name of its file. To add one: write a function from row to
Record and add a line to `_FORMATS`. Files are opened in `sources.py`; turning records into tokens is not done here.

Reasons in the errors raised here are fragments without a place: the caller knows the file and the line.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record, Role, Stage

Row = Mapping[str, Any]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
# A prompt next to one of these is not a prompt alone, and reading it as one would throw the answers away.
_MORE_THAN_A_PROMPT = ("answer", "chosen", "completion", "context", "instances", "output", "rejected", "response")


@dataclass(frozen=True)
class _Format:
    """A format fits a row that has all `required` fields.

    `explains` are fields that published sets of this format carry beside them and that say nothing new.
    """

    name: str
    required: tuple[str, ...]
    read: Callable[[Row], Record]
    explains: tuple[str, ...] = ()


def to_record(row: object, origin: str) -> Record:
    """Reads one row, an object or a string of plain text, as a Record; a field that is null counts as absent.

    Raises:
        DataError: if no format or more than one fits the row, or a field has the wrong type or content.
    """
    if isinstance(row, str):
        return replace(_plain_text({"text": row}), origin=origin)
    if not isinstance(row, Mapping):
        raise DataError(f"the record is {_kind(row)}, not an object with fields and not a string")
    given = {name: value for name, value in row.items() if value is not None}
    fitting = [format for format in _FORMATS if given.keys() >= set(format.required)]
    if not fitting:
        raise _no_format(row)
    # prompt + chosen + rejected is also "a prompt", and "chosen + rejected": what another one accounts for is no rival
    rivals = [format for format in fitting if not any(_accounts_for(other, format) for other in fitting)]
    if len(rivals) > 1:
        names = " and ".join(f'"{format.name}" ({", ".join(format.required)})' for format in rivals)
        raise DataError(f"the record fits more than one format: {names}; keep the fields of one of them")
    return replace(rivals[0].read(given), fields=row, origin=origin)


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


def _accounts_for(format: _Format, other: _Format) -> bool:
    return other is not format and set(other.required) <= {*format.required, *format.explains}


def _no_format(row: Row) -> DataError:
    fields = ", ".join(f"{name} (null)" if value is None else str(name) for name, value in row.items()) or "none"
    accepted = "; ".join(" + ".join(format.required) for format in _FORMATS)
    return DataError(f"no format fits a record with the fields: {fields}. Accepted are {accepted}")


# One function per format, each from the non-null fields of a row to a Record.


def _prompt_pair(row: Row) -> Record:
    """prompt, chosen, rejected: the answers alone, or each a conversation that holds the prompt (UltraFeedback)."""
    strip = isinstance(row["prompt"], str) and _is_transcript(row["prompt"])
    return _pair(row, "chosen", "rejected", before=_prompt(row["prompt"]), strip=strip)


def _sharegpt_pair(row: Row) -> Record:
    """conversations, chosen, rejected: the turns so far, and the next one twice (LLaMA-Factory)."""
    return _pair(row, "chosen", "rejected", before=_messages(row["conversations"], "conversations"), strip=False)


def _whole_pair(row: Row) -> Record:
    """chosen, rejected: two conversations, or two transcripts (hh-rlhf), that differ in the last turn."""
    return _pair(row, "chosen", "rejected", before=(), strip=False)


def _whole_pair_of_messages(row: Row) -> Record:
    """chosen_messages, rejected_messages: two conversations that differ in the last turn."""
    return _pair(row, "chosen_messages", "rejected_messages", before=(), strip=False)


def _scored_answers(row: Row) -> Record:
    """prompt and K answers: strings, or objects with their score or rank, or scores or ranks in a list of their own."""
    name = next(name for name in ("answers", "responses", "completions") if name in row)
    items = row[name]
    if not isinstance(items, list) or not items:
        raise DataError(f'"{name}" is {_kind(items) if items != [] else "an empty list"}, not a list of answers')
    contents: list[str] = []
    scores: list[float | None] = []
    for i, item in enumerate(items):
        where = f"{name}[{i}]"
        if isinstance(item, Mapping):
            key = next((key for key in ("content", "text", "answer") if item.get(key) is not None), None)
            if key is None:
                raise DataError(f'"{where}" has none of content, text and answer')
            contents.append(_string(item[key], f"{where}.{key}"))
            scores.append(_score(item.get("score"), item.get("rank"), where))
        else:
            contents.append(_string(item, where))
            scores.append(None)
    for listed in ("scores", "ranks"):
        if listed not in row:
            continue
        values = row[listed]
        if not isinstance(values, list) or len(values) != len(items):
            raise DataError(f'"{listed}" must be a list with one number for each of the {len(items)} {name}')
        if any(score is not None for score in scores):
            raise DataError(f'the answers have scores twice, and "{listed}" is one of them; keep one of the two')
        scores = [
            _score(value, None, f"{listed}[{i}]") if listed == "scores" else _score(None, value, f"{listed}[{i}]")
            for i, value in enumerate(values)
        ]
    if len({score is None for score in scores}) == 2:
        raise DataError(f"answer {scores.index(None)} has no score although others have; score all or none")
    return _record(
        _prompt(row["prompt"]), [Answer(content, score) for content, score in zip(contents, scores, strict=True)]
    )


def _alpaca(row: Row) -> Record:
    """instruction, input (optional), output."""
    return _record(_instruction(row), [Answer(_string(row["output"], "output"))])


def _chat(row: Row) -> Record:
    """messages or conversations; one that ends with a user turn is a prompt without an answer."""
    _refuse_unpaired_label(row)
    name = "messages" if "messages" in row else "conversations"
    turns = _messages(row[name], name)
    if turns[-1].role == "assistant":
        return _record(turns[:-1], [Answer(turns[-1].content)])
    return _record(turns, [])


def _prompt_and_answer(row: Row) -> Record:
    """question and answer (gsm8k), or prompt and answer, response or completion."""
    _refuse_unpaired_label(row)
    name = next(name for name in ("answer", "response", "completion") if name in row)
    question = (Message("user", _string(row["question"], "question")),) if "question" in row else _prompt(row["prompt"])
    return _record(question, [Answer(_string(row[name], name))])


def _plain_prompt(row: Row) -> Record:
    """prompt or instruction, and nothing beside it that looks like an answer."""
    if any(str(name).startswith(_MORE_THAN_A_PROMPT) for name in row):
        raise _no_format(row)
    return _record(_prompt(row["prompt"]) if "prompt" in row else _instruction(row), [])


def _plain_text(row: Row) -> Record:
    """text for language modelling."""
    text = _string(row["text"], "text")
    if not text.strip():
        raise DataError("the text is empty")
    return Record(text=text)


_FORMATS = (
    # UltraFeedback repeats the chosen conversation as `messages`, rm-static the chosen answer as `response`
    _Format("preference", ("prompt", "chosen", "rejected"), _prompt_pair, ("messages", "response")),
    _Format("ShareGPT preference", ("conversations", "chosen", "rejected"), _sharegpt_pair),
    _Format("preference of conversations", ("chosen", "rejected"), _whole_pair, ("messages",)),
    _Format("preference of conversations", ("chosen_messages", "rejected_messages"), _whole_pair_of_messages),
    _Format("scored answers", ("prompt", "answers"), _scored_answers),
    _Format("scored answers", ("prompt", "responses"), _scored_answers),
    _Format("scored answers", ("prompt", "completions"), _scored_answers),
    # Stanford Alpaca carries instruction, input and output once more, set in its own template, as `text`
    _Format("alpaca", ("instruction", "output"), _alpaca, ("text",)),
    # UltraChat repeats the first user message as `prompt`
    _Format("chat", ("messages",), _chat, ("prompt",)),
    _Format("ShareGPT", ("conversations",), _chat),
    _Format("question and answer", ("question", "answer"), _prompt_and_answer),
    _Format("prompt and answer", ("prompt", "answer"), _prompt_and_answer),
    _Format("prompt and answer", ("prompt", "response"), _prompt_and_answer),
    _Format("prompt and answer", ("prompt", "completion"), _prompt_and_answer),
    _Format("plain prompt", ("prompt",), _plain_prompt),
    _Format("plain prompt", ("instruction",), _plain_prompt),
    _Format("plain text", ("text",), _plain_text),
)


# The parts that the formats share.


def _record(prompt: Sequence[Message], answers: Sequence[Answer]) -> Record:
    """Checks the order of the turns and that something is there to learn."""
    turns = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    for i, turn in enumerate(prompt):
        if not turn.content.strip():
            raise DataError(f"turn {i + 1} ({turn.role}) is empty")
    for i, turn in enumerate(turns):
        expected = "assistant" if i % 2 else "user"
        if turn.role != expected:
            number = i + 1 + len(prompt) - len(turns)
            raise DataError(
                f"turn {number} is of role {turn.role} where {expected} is due; "
                "the order is system (optional), then user and assistant in turn"
            )
    if not turns or turns[-1].role != "user":
        raise DataError("the prompt does not end with a user turn")
    for i, answer in enumerate(answers):
        if not answer.content.strip():
            raise DataError("the answer is empty" if len(answers) == 1 else f"answer {i + 1} is empty")
    return Record(prompt=tuple(prompt), answers=tuple(answers))


def _pair(row: Row, chosen: str, rejected: str, *, before: tuple[Message, ...], strip: bool) -> Record:
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
    scores = (0.5, 0.5) if answer == other else (1.0, 0.0)
    return _record(better[:-1], [Answer(answer, scores[0]), Answer(other, scores[1])])


def _conversation(value: Any, name: str, *, before: tuple[Message, ...], strip: bool) -> tuple[Message, ...]:
    """One side of a pair with its prompt: the turns `before` go first unless the value brings its own."""
    if isinstance(value, str):
        text = _string(value, name)
        if _is_transcript(text):
            return _transcript(text)
        if not before:
            raise DataError(
                f'"{name}" is neither a transcript (Human: ..., Assistant: ...) nor a list of messages, '
                "and there is no prompt beside it"
            )
        return (*before, Message("assistant", text.strip() if strip else text))
    turns = (_message(value, name),) if isinstance(value, Mapping) else _messages(value, name)
    return (*before, *turns) if turns[0].role == "assistant" else turns


def _prompt(value: Any) -> tuple[Message, ...]:
    """The prompt of a row: one user message, a transcript that breaks off after "Assistant:", or messages."""
    if not isinstance(value, str):
        return _messages(value, "prompt")
    text = _string(value, "prompt")
    if not _is_transcript(text):
        return (Message("user", text),)
    turns = _transcript(text)
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def _instruction(row: Row) -> tuple[Message, ...]:
    instruction, context = _string(row["instruction"], "instruction"), _string(row.get("input", ""), "input")
    return (Message("user", f"{instruction}\n\n{context}" if context.strip() else instruction),)


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _transcript(text: str) -> tuple[Message, ...]:
    """The turns of "Human: ... Assistant: ..."; turns of one speaker in a row become one (hh-rlhf has such)."""
    _, *parts = _SPEAKER.split(text)  # alternately speaker and words
    turns: list[Message] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        turn = Message("user" if speaker == "Human" else "assistant", words.strip())
        if turns and turns[-1].role == turn.role:
            turn = Message(turn.role, f"{turns.pop().content}\n\n{turn.content}".strip())
        turns.append(turn)
    return tuple(turns)


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise DataError(f'"{name}" is {_kind(value)}, not a list of messages')
    if not value:
        raise DataError(f'"{name}" is an empty list')
    return tuple(_message(item, f"{name}[{i}]") for i, item in enumerate(value))


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f'"{name}" is {_kind(item)}, not a message with role and content')
    role_key, content_key = ("role", "content") if item.get("from") is None else ("from", "value")
    role = item.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f'"{name}.{role_key}" is {role!r}; the roles are {", ".join(_ROLES)}')
    content = item.get(content_key)
    if isinstance(content, list):
        parts = [_part(part, f"{name}.{content_key}[{i}]") for i, part in enumerate(content)]
        return Message(_ROLES[role], "".join(parts))
    return Message(_ROLES[role], _string(content, f"{name}.{content_key}"))


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
        raise DataError(f'"{name}" is of type {kind}; only parts of type text are read')
    key = "value" if part.get("text") is None else "text"
    return _string(part.get(key), f"{name}.{key}")


def _refuse_unpaired_label(row: Row) -> None:
    """A thumb up or down (KTO): an answer marked bad must not become one to imitate."""
    for name in ("label", "kto_tag"):
        if isinstance(row.get(name), bool):
            raise DataError(f'"{name}" marks single answers as good or bad; only compared or scored answers are read')


def _score(score: Any, rank: Any, where: str) -> float | None:
    """The score of an answer; rank r, 1 being the best, counts as score -r."""
    if score is not None and rank is not None:
        raise DataError(f'"{where}" has both a score and a rank; keep one of them')
    value = rank if score is None else score
    if value is None:
        return None
    if not isinstance(value, int | float) or not -sys.float_info.max <= value <= sys.float_info.max:
        raise DataError(f'"{where}" has {_kind(value)} where a finite number is due as its score or rank')
    return float(value) if rank is None else -float(value)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f'"{name}" is {_kind(value)}, not text')
    try:
        value.encode()  # JSON can spell "\\ud800", which no tokenizer and no file can take
    except UnicodeEncodeError:
        raise DataError(f'"{name}" holds half of a surrogate pair, which is no character') from None
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else f"of type {type(value).__name__}"
