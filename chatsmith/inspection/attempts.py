"""A look at data must never end what it is for: what goes wrong in it becomes a finding that names the place."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from chatsmith.errors import ChatsmithError
from chatsmith.inspection.findings import EXAMPLES, Example, Finding

T = TypeVar("T")
_HERE = Path(__file__).parents[1]


@dataclass
class _Failures:
    tried: int = 0
    failed: int = 0
    are_bugs: bool = False
    examples: list[Example] = field(default_factory=list)


class Attempts:
    """Calls what looks at data, and keeps what it raises."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failures] = {}

    def __call__(self, what: str, where: str, look: Callable[[], T]) -> T | None:
        """What `look` returns; None if it fails.

        Args:
            what: that it fails for, in words of a finding.
            where: the record or the source that it looks at.
        """
        failures = self._failures.setdefault(what, _Failures())
        failures.tried += 1
        try:
            return look()
        except Exception as error:  # whatever it is, training may well go on
            failures.failed += 1
            failures.are_bugs |= not isinstance(error, ChatsmithError)
            if len(failures.examples) < EXAMPLES:
                failures.examples.append(Example(where, described(error)))
            return None

    def findings(self) -> list[Finding]:
        """One for each kind of failure: an error where nothing at all could be used as it is, else a warning."""
        found = []
        for what, failures in self._failures.items():
            if failures.failed:
                hopeless = failures.failed == failures.tried and not failures.are_bugs
                remedy = "look at these records, or leave them out"
                if failures.are_bugs:
                    remedy = "report it as a bug in chatsmith, with these places; a run is not ended by it"
                found.append(
                    Finding(
                        "error" if hopeless else "warning",
                        what,
                        remedy,
                        failures.failed,
                        failures.tried,
                        tuple(failures.examples),
                    )
                )
        return found


def described(error: Exception) -> str:
    """What went wrong; of a bug also where in this package."""
    if isinstance(error, ChatsmithError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _HERE in Path(frame.filename).parents]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
