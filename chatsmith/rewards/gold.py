"""The answer that the data gives: in the first of these fields that a row has."""

from collections.abc import Mapping
from typing import Any

from chatsmith.types import Record

# in this order, for some rows hold the whole solution beside the bare answer; a dot leads into an object (verl)
FIELDS = (
    *("final_answer", "ground_truth", "reward_model.ground_truth", "gold_answer", "gold", "gt_answer", "gt"),
    *("expected", "expected_answer", "answer", "solution"),
)
MISSING = f"its row has no gold answer in any of the fields {', '.join(FIELDS)}"
LONGEST = 100_000  # characters; hardly a page of them is a solution


def gold_of(record: Record) -> str | None:
    """The gold answer of a record as text; None if it has none."""
    for name in FIELDS:
        value = _at(record.fields, name.split("."))
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) in (int, float):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value[:LONGEST]
    return None


def _at(row: Any, path: list[str]) -> Any:
    for name in path:
        if not isinstance(row, Mapping):
            return None
        row = row.get(name)
    return row


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...}, braces inside it counted; None if there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end]
    return None


def final(text: str) -> str | None:
    r"""What a text marks as its final answer: the last \boxed{}, or the line after the last ####; None without."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    _, mark, after = text.rpartition("####")
    return after.strip().partition("\n")[0] if mark else None
