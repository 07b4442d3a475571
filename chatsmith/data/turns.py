"""From what data sets call a conversation to Messages: lists of messages in several spellings, and transcripts.

Used by `formats.py`, which knows in which field of a row each of them stands.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.data.fields import Fields
from chatsmith.data.marks import is_mark, meaning
from chatsmith.data.templates import kind
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TOOL_ROLES = ("function", "function_call", "function_response", "ipython", "observation", "tool", "tool_call")
# fields of an assistant's turn that say whether it is learned: in full, or else
_WEIGHTS = ("weight", "loss_weight", "train", "training", "trainable", "learn", "loss", "loss_mask")
_MASKS = ("mask", "masked")  # of which nobody knows whether they leave the turn in or out


@dataclass(frozen=True)
class _Style:
    """How a transcript marks who speaks: the mark's first group is the speaker. `end` follows finished answers."""

    mark: re.Pattern[str]
    end: str = ""


_USERS, _ASSISTANTS = ("Human", "User", "USER"), ("Assistant", "ASSISTANT", "AI")
_SPEAKERS = "|".join((*_USERS, *_ASSISTANTS))
_AT_LINE = r"(?:\A\s*|\n[^\S\n]*|(?=###))(?:### ?)?"  # of the empty lines before it the last: they may be many
_PARAGRAPHS = _Style(re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"))
_LINES = _Style(re.compile(rf"{_AT_LINE}({_SPEAKERS})[:：]"))
_ONE_LINE = _Style(re.compile(rf"(?:\A|\s)({_SPEAKERS})[:：]"))  # the local files of DeepSpeed-Chat
_VICUNA = _Style(re.compile(r"(?:\A|\s|(?<=</s>))(USER|ASSISTANT):"), end="</s>")
_ASKS = re.compile(rf"{_AT_LINE}(?:{'|'.join(_USERS)})[:：]")
_ANSWERS = re.compile(rf"{_AT_LINE}(?:{'|'.join(_ASSISTANTS)})[:：]")
_WAITS = re.compile(rf"{_AT_LINE}(?:{'|'.join(_ASSISTANTS)})[:：]\s*\Z")


def checked(prompt: Sequence[Message], answers: Sequence[Answer]) -> Record:
    """The record of a prompt and answers to it.

    Raises:
        DataError: if the turns are out of order, or one is empty.
    """
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


def messages(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages, or a single one."""
    if isinstance(value, Mapping):
        return (_message(value, name),)
    if not isinstance(value, list):
        raise DataError(f'"{name}" is {kind(value)}, not a list of messages')
    if not value:
        raise DataError(f'"{name}" is an empty list')
    return tuple(_message(item, f"{name}[{i}]") for i, item in enumerate(value))


def prompt_turns(value: Any, name: str) -> tuple[Message, ...]:
    """A prompt: one user message, a transcript that breaks off where the answer begins, or messages."""
    if not isinstance(value, str):
        return messages(value, name)
    text = string(value, name)
    if not is_transcript(text):
        return (Message("user", text),)
    turns = transcript(text)
    return turns[:-1] if turns[-1] == Message("assistant", "") else turns


def is_transcript(text: str) -> bool:
    """Whether a text is a conversation: `Human: ... Assistant: ...`, or `USER: ... ASSISTANT:`."""
    return _style(text) is not None


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a text that is a transcript; turns of one speaker in a row become one (hh-rlhf has such)."""
    style = _style(text)
    assert style is not None
    before, *parts = style.mark.split(text)  # what stands before the first speaker, then speaker and words in turn
    turns = [Message("system", before.strip())] if before.strip() else []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        role: Role = "user" if speaker in _USERS else "assistant"
        content = words.strip()
        if role == "assistant" and style.end:
            content = content.removesuffix(style.end).rstrip()
        if turns and turns[-1].role == role:
            content = f"{turns.pop().content}\n\n{content}".strip()
        turns.append(Message(role, content))
    return tuple(turns)


def string(value: Any, name: str) -> str:
    """The value, if it is text that can be written."""
    if not isinstance(value, str):
        raise DataError(f'"{name}" is {kind(value)}, not text')
    try:
        value.encode()  # JSON can spell "\\ud800", which no tokenizer and no file can take
    except UnicodeEncodeError:
        raise DataError(f'"{name}" holds half of a surrogate pair, which is no character') from None
    return value


def alternating(value: Any, name: str) -> tuple[Message, ...]:
    """A conversation as messages, or as texts alone of which the user says the first (UltraChat, LIMA)."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return messages(value, name)
    roles: tuple[Role, Role] = ("user", "assistant")
    return tuple(Message(roles[i % 2], string(item, f"{name}[{i}]")) for i, item in enumerate(value))


def continued(before: Sequence[Message], turns: Sequence[Message], names: tuple[str, str]) -> tuple[Message, ...]:
    """A prompt, and a conversation that goes on from it: it may repeat the prompt, or only the end of it.

    Raises:
        DataError: if the conversation begins otherwise than the prompt says.
    """
    asked, said = [[(turn.role, turn.content.strip()) for turn in part] for part in (before, turns)]
    for start in range(len(asked)):
        if asked[start:] == said[: len(asked) - start]:
            return (*before[:start], *turns)
    if turns[0].role == "assistant":
        return (*before, *turns)
    inside = any(said[start : start + len(asked)] == asked for start in range(len(said)))
    if not inside and not (len(asked) == 1 and ("system", asked[0][1]) == said[0]):
        raise DataError(
            f'"{names[0]}" says something else than the turns with which "{names[1]}" begins; leave one of them out'
        )
    return tuple(turns)


def _style(text: str) -> _Style | None:
    """How a text marks who speaks, if it is one: it opens with the user, or ends where the assistant is to begin."""
    if text.lstrip().startswith("Human:") and "\n\nAssistant:" in text:
        return _PARAGRAPHS
    if "USER:" in text and text.rstrip().endswith("ASSISTANT:"):
        return _VICUNA
    if (
        text.lstrip().startswith("Human:")
        and text.rstrip().endswith((" Assistant:", "\nAssistant:"))
        and "### " not in text
    ):
        return _ONE_LINE
    opens = _ASKS.match(text) is not None
    if (opens and _ANSWERS.search(text)) or (_ASKS.search(text) and _WAITS.search(text)):
        return _LINES
    speakers = _ONE_LINE.mark.findall(text) if opens else []
    return _ONE_LINE if any(speaker in _ASSISTANTS for speaker in speakers) else None


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f'"{name}" is {kind(item)}, not a message with role and content')
    role_key = "role" if item.get("from") is None else "from"
    content_key = "value" if item.get("content") is None and "value" in item else "content"
    role = item.get(role_key)
    if isinstance(role, str) and role in _TOOL_ROLES:
        meant = "assistant" if "call" in role else "user"
        raise DataError(
            f'"{name}" is a tool turn ({role}), which is read only where a recipe says as what: '
            f'roles = {{ {role} = "{meant}" }}'
        )
    if item.get("tool_calls"):
        raise DataError(f'"{name}" calls a tool, and only words are read')
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f'"{name}.{role_key}" is {reprlib.repr(role)}; the roles are {", ".join(_ROLES)}')
    _check_weights(item, name, is_learned=_ROLES[role] == "assistant")
    content = item.get(content_key)
    if isinstance(content, list):
        parts = [_part(part, f"{name}.{content_key}[{i}]") for i, part in enumerate(content)]
        return Message(_ROLES[role], "".join(parts))
    return Message(_ROLES[role], string(content, f"{name}.{content_key}"))


def refuse_weight_of_record(row: Mapping[str, Any]) -> None:
    """A whole record that shall not be learned, or in part."""
    for field in ("weight", "sample_weight", "loss_weight", "train", "trainable"):
        if isinstance(row.get(field), bool | int | float) and row[field] != 1:
            raise DataError(f'"{field}" is {row[field]}; records are learned in full, by weight 1: leave this one out')


def _check_weights(item: Mapping[str, Any], name: str, *, is_learned: bool) -> None:
    """Every turn of the assistant is learned in full: one that shall not be, or in part, is refused."""
    weights = {field: item[field] for field in (*_WEIGHTS, *_MASKS) if item.get(field) is not None}
    row = item.peek() if isinstance(item, Fields) else item
    bad = next((field for field in row if is_mark(field) and meaning(field, row[field]) is False), None)
    if bad is not None and is_learned:
        raise DataError(
            f'"{name}.{bad}" is {reprlib.repr(item[bad])}: a turn that is marked bad must not be learned; leave the '
            "conversation out, or end it before that turn"
        )
    for field, weight in weights.items() if is_learned else ():
        if field in _MASKS:
            raise DataError(
                f'"{name}.{field}" does not say whether the turn is learned or left out; answers are learned in full'
            )
        if weight != 1:
            raise DataError(
                f'"{name}.{field}" is {reprlib.repr(weight)}; answers are learned in full, by weight 1: leave the '
                "conversation out, or end it before that turn"
            )


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        given = part.get("type") if isinstance(part, Mapping) else kind(part)
        raise DataError(f'"{name}" is of type {given}; only parts of type text are read')
    key = "value" if part.get("text") is None else "text"
    return string(part.get(key), f"{name}.{key}")
