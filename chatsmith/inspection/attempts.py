"""A look at data must never end what it is for: what goes wrong in it becomes a finding that names the place."""

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chatsmith.errors import ChatsmithError
from chatsmith.inspection.findings import EXAMPLES, Example, Finding, Severity

T = TypeVar("T")
_HERE = Path(__file__).parents[1]


class Attempts:
    """Calls what looks at data, and keeps what it raises."""

    def __init__(self) -> None:
        self._tried: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._bugs: set[str] = set()
        self._examples: defaultdict[str, list[Example]] = defaultdict(list)

    def __call__(self, what: str, where: str, look: Callable[[], T]) -> T | None:
        """What `look` returns; None if it fails.

        Args:
            what: that it fails for, in words of a finding.
            where: the record or the source that it looks at.
        """
        self._tried[what] += 1
        try:
            return look()
        except Exception as error:  # whatever it is, training may well go on
            self._failed[what] += 1
            if not isinstance(error, ChatsmithError):
                self._bugs.add(what)
            if len(self._examples[what]) < EXAMPLES:
                self._examples[what].append(Example(where, described(error)))
            return None

    def findings(self) -> list[Finding]:
        """One for each kind of failure: an error where nothing at all could be used as it is, else a warning."""
        found = []
        for what, failed in self._failed.items():
            severity: Severity = "error" if failed == self._tried[what] else "warning"
            remedy = "look at these records, or leave them out"
            if what in self._bugs:
                severity, remedy = (
                    "warning",
                    "report it as a bug in chatsmith, with these places; a run is not ended by it",
                )
            found.append(Finding(severity, what, remedy, failed, self._tried[what], tuple(self._examples[what])))
        return found


def described(error: Exception) -> str:
    """What went wrong; of a bug also where in this package."""
    if isinstance(error, ChatsmithError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _HERE in Path(frame.filename).parents]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
