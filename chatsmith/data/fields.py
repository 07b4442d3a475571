"""The fields of a row: which of them were read, and whether one that was not holds part of a conversation.

Nobody keeps lists of what a format uses: a field has been used if it has been read. What is left over is named by `data
check`, and refused where its name or its form says that it belongs to what was said.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def repeated(names: Collection[str]) -> str | None:
    """The first of the names that stand more than once."""
    counts = Counter(names)
    return next((name for name in names if counts[name] > 1), None)


# Words in the names of fields whose content an answer depends on, or is part of.
_SAID = word_set(
    "abstract article background chat constraint content context conversation demonstration dialog dialogue document"
    " evidence example excerpt fact hint history hypothesis input instruction knowledge memory message observation"
    " paragraph passage persona prefix premise profile prompt query question scenario schema snippet story suffix"
    " system table turn utterance choice option cot rationale reasoning scratchpad thinking thought function tool"
    " loss mask trainable weight"  # lists of these, one for each turn
)
_SHOWN = word_set("attachment audio image media picture speech video")
# Beside these the same words name a number or a label of it: question_id, prompt_tokens, instruction_type.
_ABOUT_IT = word_set(
    "category count date domain effort fingerprint format hash id idx index key kind label lang language len length"
    " level link model n name num number order quality rating score sha size source tag template time timestamp token"
    " type url uuid version"
)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_NOTHING = ("", "[]", "{}", "null", "none")
_ROLES = ("role", "from")
_LONG = 5  # letters from which on two words that differ in one of them are the same, misspelt


class Fields(Mapping[str, Any]):
    """A row that knows which of its fields were read; so do the objects in it, at any depth."""

    def __init__(self, row: Mapping[Any, Any]) -> None:
        self._row = {str(name): value for name, value in row.items()}
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = _watched(self._row[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, name: object) -> bool:
        return name in self._row

    def peek(self) -> Mapping[str, Any]:
        """The row, to look at without reading."""
        return self._row

    def was_read(self, name: str) -> bool:
        return name in self._read

    def unread(self) -> dict[str, list[Any]]:
        """The values of the fields that were not read and are not null, by their paths: `id`, `messages[].name`."""
        found: dict[str, list[Any]] = {}
        for name, value in self._row.items():
            if name not in self._read:
                if value is not None:
                    found[name] = [value]
            else:
                for path, values in _unread_in(self._read[name]):
                    found.setdefault(name + path, []).extend(values)
        return found


def _watched(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Fields(value)
    return [_watched(item) for item in value] if isinstance(value, list) else value


def _unread_in(value: Any) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(value, Fields):
        for path, values in value.unread().items():
            yield f".{path}", values
    elif isinstance(value, list):
        for item in value:
            for path, values in _unread_in(item):
                yield f"[]{path}", values


def words(name: str) -> tuple[str, ...]:
    """The words of a name, in whatever way they are joined: chat_history, chatHistory."""
    return tuple(word.lower() for word in _WORDS.findall(name))


def is_said(path: str, value: Any) -> bool:
    """Whether a field belongs to a conversation: by the words in its name, or as a list of messages or of pairs."""
    if is_empty(value):
        return False
    return (_names_something_said(path) and not isinstance(value, bool | int | float)) or _is_talk(value)


def texts_in(value: Any) -> list[str]:
    """All that a value says, without the roles and types in it."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for name, item in value.items() if name not in (*_ROLES, "type") for text in texts_in(item)]
    return [text for item in value for text in texts_in(item)] if isinstance(value, list) else []


def stands_in(value: Any, text: str) -> bool:
    """Whether a text says all that a value does, spacing aside; of a value that says nothing nobody knows."""
    said = texts_in(value)
    whole = " ".join(text.split())
    return bool(said) and all(" ".join(part.split()) in whole for part in said)


def meant(name: str, known: Sequence[str], present: Collection[str] = ()) -> str:
    """The known name that is this one misspelt, by case or separators or by one letter of a long word; else "".

    A name that is `present` already is not meant, and numbers and short words make names different ones.
    """
    others = [other for other in known if other not in present and other != name]
    letters, parts = _letters(name), words(name)
    plain = [other for other in others if _letters(other) == letters]
    return next(iter(plain or [other for other in others if _is_slip(parts, words(other))]), "")


@lru_cache(maxsize=4096)
def _names_something_said(path: str) -> bool:
    found = {form for word in words(path.rpartition(".")[2]) for form in (word, word.removesuffix("s"))}
    if found & _SHOWN:
        return not found & (_ABOUT_IT - {"link", "url"})
    return bool(found & _SAID) and not found & _ABOUT_IT


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, blanks, or nothing but such."""
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    if isinstance(value, Mapping):
        value = list(value.values())
    return value is None or (isinstance(value, list) and all(map(is_empty, value)))


def _is_talk(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if all(isinstance(item, Mapping) for item in value):
        return all(any(name in item for name in _ROLES) for item in value)
    return all(isinstance(item, list) and len(item) == 2 and all(isinstance(x, str) for x in item) for item in value)


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _is_slip(name: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if len(name) != len(other):
        return False
    differing = [(a, b) for a, b in zip(name, other, strict=True) if a != b]
    return len(differing) == 1 and _is_one_slip_away(*sorted(differing[0], key=len))


def _is_one_slip_away(word: str, other: str) -> bool:
    """One letter more, or another one, or two neighbours in the wrong order; the first letter is right."""
    if word.isdigit() or other.isdigit() or len(word) == len(other) < _LONG:
        return False
    at = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), len(word))
    if at == 0 or len(other) - len(word) > 1:
        return False
    if len(word) < len(other):
        return word[at:] == other[at + 1 :]
    swapped = word[at : at + 2] == other[at : at + 2][::-1] and word[at + 2 :] == other[at + 2 :]
    return swapped or word[at + 1 :] == other[at + 1 :]
