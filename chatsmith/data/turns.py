"""From what data sets call a conversation to Messages: lists of messages in several spellings, and transcripts.

Used by `formats.py`, which knows in which field of a row each of them stands.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.data.templates import kind
from chatsmith.errors import DataError
from chatsmith.types import Answer, Message, Record, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TOOL_ROLES = ("function", "function_call", "function_response", "ipython", "observation", "tool", "tool_call")


@dataclass(frozen=True)
class _Style:
    """How a transcript marks who speaks: the mark's first group is the speaker. `end` follows finished answers."""

    mark: re.Pattern[str]
    user: str
    end: str = ""


_PARAGRAPHS = _Style(re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"), "Human")
_ONE_LINE = _Style(re.compile(r"(?:\A|\s)(Human|Assistant):"), "Human")  # the local files of DeepSpeed-Chat
_VICUNA = _Style(re.compile(r"(?:\A|\s|(?<=</s>))(USER|ASSISTANT):"), "USER", end="</s>")


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
        role: Role = "user" if speaker == style.user else "assistant"
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


def _style(text: str) -> _Style | None:
    if text.lstrip().startswith("Human:"):
        if "\n\nAssistant:" in text:
            return _PARAGRAPHS
        return _ONE_LINE if text.rstrip().endswith((" Assistant:", "\nAssistant:")) else None
    return _VICUNA if text.rstrip().endswith("ASSISTANT:") and "USER:" in text else None


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
    if role in ("assistant", "gpt") and item.get("loss_weight") not in (None, 1):
        raise DataError(
            f'"{name}.loss_weight" is {reprlib.repr(item["loss_weight"])}; answers are learned in full, by weight 1'
        )
    content = item.get(content_key)
    if isinstance(content, list):
        parts = [_part(part, f"{name}.{content_key}[{i}]") for i, part in enumerate(content)]
        return Message(_ROLES[role], "".join(parts))
    return Message(_ROLES[role], string(content, f"{name}.{content_key}"))


def _part(part: Any, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        given = part.get("type") if isinstance(part, Mapping) else kind(part)
        raise DataError(f'"{name}" is of type {given}; only parts of type text are read')
    key = "value" if part.get("text") is None else "text"
    return string(part.get(key), f"{name}.{key}")
