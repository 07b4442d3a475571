"""README.md of a saved model: what it is, from what, under which licences. What is not known is said to be unknown."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from chatsmith.files.received import places_inside
from chatsmith.screen.text import one_line

_LONGEST_HEAD = 64_000  # bytes of another model's card that are looked at
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


def card(
    title: str,
    *,
    tags: Sequence[str],
    made: str,
    base: str,
    licences: Sequence[tuple[str, str | None]],
    more: Sequence[str] = (),
) -> str:
    """The text: a head in YAML that the hub reads, and the same for people.

    Args:
        made: how the model was made, a sentence.
        base: a model directory or hub id; empty: not known.
        licences: of the base and of each data source, by its name; None where none is stated. One that all state is
            the model's.
        more: lines at the end.
    """
    named = {licence for _, licence in licences}
    shared = named.pop() if len(named) == 1 else None
    head = {
        "license": shared if shared and _LICENCE_ID.fullmatch(shared) else None,
        "library_name": "transformers",
        "base_model": base if _HUB_ID.fullmatch(base) and not Path(base).exists() else None,
        "tags": ["chatsmith", *tags],
    }
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value),
            "---",
            "",
            f"# {title}",
            "",
            made,
            "",
            f"Base: {one_line(base) or 'not recorded'}",
            "",
            "Data and licences:",
            "",
            *(f"- {one_line(name)}: {one_line(licence or 'no licence is stated')}" for name, licence in licences),
            *more,
            "",
        ]
    )


def stated_licence(location: str) -> str | None:
    """What the card of a model directory names as its licence; None if it has none, or for a model of the hub."""
    path = Path(location) / "README.md"
    real = Path(os.path.realpath(path))
    if not path.is_file() or not any(real.is_relative_to(place) for place in places_inside(Path(location))):
        return None
    with path.open("rb") as file:
        text = file.read(_LONGEST_HEAD).decode("utf-8", errors="replace")
    head = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license: *[\"']?([a-z0-9][a-z0-9.-]*)[\"']? *$", head[1], re.MULTILINE)
    return found[1] if found else None
