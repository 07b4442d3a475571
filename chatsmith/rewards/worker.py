"""One process for what may hang or take all memory: hostile LaTeX, a regular expression from a row.

It is killed by the clock on the wall, whatever it does: neither an alarm in Python nor a thread ends a long product of
whole numbers. What is printed there reaches nobody.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from importlib import import_module
from typing import Any

from chatsmith.errors import RewardError
from chatsmith.files.bounds import Unbounded, bounded

START_S = 120.0  # for Python and what the function imports
_CODE = "import sys; from chatsmith.rewards.worker import serve; serve(*sys.argv[1:])"


class Killed(Exception):
    """The call took too long, or more memory than there is, and the process is gone."""


class Failed(Exception):
    """The function raised; type and text of its error."""


class Worker:
    """Calls one function in a process of its own, begun when it is first asked and again after it was killed.

    Args:
        target: `module:function` of this package. Its arguments and what it returns are plain JSON.
        probe: arguments for which it returns True: it is asked at every start, so that a function which is broken is
            never taken for answers that are wrong.
        seconds: after which a call is killed.
    """

    def __init__(self, target: str, *, probe: tuple[Any, ...], seconds: float) -> None:
        self.seconds = seconds
        self._target, self._probe = target, probe
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *arguments: Any) -> Any:
        """
        Raises:
            Killed, Failed: see there.
            RewardError: if the process cannot be started, or does not work.
        """
        if self._process is None:
            self._start()
        return self._ask(arguments, self.seconds)

    def close(self) -> None:
        if self._process is not None:
            _stop(self._process)
            self._process = None

    def _start(self) -> None:
        # a group of its own: Ctrl-C in the terminal is meant for the run, which saves a checkpoint first
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, self._target, str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            process_group=0,
        )
        weakref.finalize(self, _stop, self._process)
        try:
            said = self._ask(self._probe, START_S)
        except (Killed, Failed) as error:
            said = f"{type(error).__name__}: {error}"
        if said is not True:
            self.close()
            raise RewardError(
                f"{self._target} does not work in a process of its own: it says {said!r}, not "
                "True. Install its package anew."
            )

    def _ask(self, arguments: tuple[Any, ...], seconds: float) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self._process.stdin.flush()
            line = self._read(time.monotonic() + seconds)
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            raise Killed
        how, value = json.loads(line)
        if how == "raised":
            raise Failed(value)
        return value

    def _read(self, deadline: float) -> bytes:
        """A line of what it says; empty where it does not come in time, or the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return b""
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            line += piece
        return line


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it was not told any more
                pipe.close()


def serve(target: str, seconds: str) -> None:
    """The worker's side: answers until nobody asks any more."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # a function may print and read what it likes
        os.dup2(nothing, descriptor)
    module, _, name = target.partition(":")
    function = None
    for line in requests:
        # the process ends by itself where the one that would kill it is gone; imports take their time
        signal.setitimer(signal.ITIMER_REAL, 2 * (float(seconds) if function else START_S))
        try:
            function = function or getattr(import_module(module), name)
            with bounded(time=False):
                said = ["value", function(*json.loads(line))]
        except (MemoryError, Unbounded):
            os._exit(1)
        except Exception as error:
            said = ["raised", f"{type(error).__name__}: {error}"[:300]]
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()
