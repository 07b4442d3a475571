"""What a stage runs in: device, interruption, its checkpoint and its metrics."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from chatsmith.config import EngineConfig
from chatsmith.errors import ConfigError, ForeignError, RunError, foreign
from chatsmith.files.checkpoint import append_jsonl, damaged, load_checkpoint, read_jsonl, save_checkpoint, save_jsonl
from chatsmith.files.writing import append, make_directory, remove
from chatsmith.machine import out_of_memory
from chatsmith.screen.text import printable, quoted

if TYPE_CHECKING:
    import torch

CHECKPOINT_FORMAT = 4
SHARE_OF_SAVING = 20  # of the time between two checkpoints a twentieth at most goes into saving


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a checkpoint was written. `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; a checkpoint was saved")
        self.exit_code = 128 + number


class StopSignals:
    """Inside the context, the first SIGINT or SIGTERM asks for a checkpoint; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[signal.Signals(number)])


class Shown(Protocol):
    """A stage's progress on the screen."""

    def resume(self, past: Sequence[dict[str, Any]]) -> None:
        """The metrics of steps that an earlier command made."""

    def update(self, step: int, metrics: dict[str, float]) -> None: ...

    def answers(self, rows: Sequence[dict[str, Any]]) -> None: ...

    def warn(self, text: str) -> None: ...


Show = Callable[[int], AbstractContextManager[Shown]]
"""Given the number of steps, shows progress inside a context."""

Track = Callable[[int, dict[str, float]], None]
"""Passes one step's metrics on to trackers."""


class StageRun:
    """One stage's folder: `checkpoint.pt` while it runs, `metrics.jsonl` with one object per step, `answers.jsonl`,
    `warnings.jsonl`.

    A loop calls `resume` once, iterates over `steps`, and per step calls `log` and `checkpoint`.
    """

    def __init__(
        self, directory: Path, *, save_every_s: float, stop: StopSignals, show: Show, track: Track | None = None
    ) -> None:
        self._show = show
        self._track = track
        self.directory = directory
        make_directory(self.directory)
        self._save_every_s = save_every_s
        self._stop = stop
        self._saved_at = time.monotonic()
        self._saving_took = 0.0
        self._metrics = directory / "metrics.jsonl"
        self._answers = directory / "answers.jsonl"
        self._warnings = directory / "warnings.jsonl"
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._shown: Shown | None = None
        self._step = -1  # before the first

    @property
    def seconds(self) -> float:
        """Time spent in this stage, over all attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at a fresh start. Metrics of steps after it are forgotten.

        Raises:
            RunError: if the checkpoint is damaged or of a later version, or the lines beside it are damaged.
        """
        state = load_checkpoint(self._checkpoint_path)
        is_older = state is not None and type(state.get("format")) is int and 0 < state["format"] < CHECKPOINT_FORMAT
        if is_older:
            state = None
        if state is not None and state.get("format") != CHECKPOINT_FORMAT:
            raise RunError(
                f"{self._checkpoint_path}: written by another version of chatsmith, which this one cannot continue. "
                f"Run the stage anew: --from {self.directory.name}."
            )
        if state is not None and not (isinstance(state.get("step"), int) and isinstance(state.get("seconds"), float)):
            raise damaged(self._checkpoint_path)
        step = -1 if state is None else state["step"]
        for path in filter(Path.exists, (self._metrics, self._answers, self._warnings)):
            save_jsonl(path, [row for row in read_jsonl(path, step=int) if row["step"] <= step])
        if state is not None:
            self._seconds_before = state["seconds"]
        if is_older:
            self.warn("begins anew: an older version of chatsmith began it, and its checkpoint does not fit this one")
        return state

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """For what is taken out of the checkpoint that `resume` gave: what does not fit is damaged.

        Raises:
            RunError: instead of whatever its values lead to.
        """
        try:
            with foreign():
                yield
        except ForeignError as error:
            if out_of_memory(error):
                raise
            raise damaged(self._checkpoint_path) from error

    def steps(self, start: int, total: int) -> Iterator[int]:
        """The steps from `start` on, with progress on the screen."""
        with self._show(total) as self._shown:
            if start:
                self._shown.resume(self.metrics())
            for text in self.warnings():
                self._shown.warn(text)
            for self._step in range(start, total):
                yield self._step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step's metrics to `metrics.jsonl`, show them, and pass them on to the trackers."""
        append_jsonl(self._metrics, [{"step": step, **metrics}])
        if self._shown is not None:
            self._shown.update(step, metrics)
        if self._track is not None:
            self._track(step, metrics)

    def log_answers(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Append prompts and answers of this step to `answers.jsonl`, and show them."""
        append_jsonl(self._answers, [{"step": step, **row} for row in rows])
        if self._shown is not None:
            self._shown.answers(rows)

    def warn(self, text: str) -> None:
        """Append a warning to `warnings.jsonl`, where the stage's verdict finds it, and show it."""
        if text in self.warnings():  # of an attempt that was interrupted
            return
        append_jsonl(self._warnings, [{"step": self._step, "warning": text}])
        if self._shown is not None:
            self._shown.warn(text)

    def skipped(self, reason: str, batch: list[str]) -> None:
        """Warn of a refused optimizer step, and keep its batch to be looked at."""
        path = self.directory / f"skipped-{self._step}.txt"
        # a step of PPO has several optimizer steps
        append(path, printable(f"==== {reason}\n\n" + "\n\n----\n\n".join(batch) + "\n\n"))
        self.warn(f"step {self._step} was skipped: {reason}; its batch is in {path.parent.name}/{path.name}")

    def warnings(self) -> list[str]:
        """What was warned of in this stage, over all attempts."""
        return [row["warning"] for row in read_jsonl(self._warnings, warning=str)]

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged in this stage, over all attempts; one object per step."""
        rows = read_jsonl(self._metrics)
        for number, row in enumerate(rows, 1):
            if not all(value is None or isinstance(value, int | float) for value in row.values()):
                raise RunError(
                    f"{quoted(self._metrics)}:{number}: damaged, not all of it is numbers. Run the stage anew "
                    f"(--from {self.directory.name})."
                )
        return rows

    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save the state after `step` if it is time to, or if the user asked to stop.

        Raises:
            Interrupted: after saving, if SIGINT or SIGTERM arrived.
        """
        started = time.monotonic()
        due = started - self._saved_at >= max(self._save_every_s, SHARE_OF_SAVING * self._saving_took)
        if due or self._stop.received is not None:
            facts = {"format": CHECKPOINT_FORMAT, "step": step, "seconds": self.seconds}
            save_checkpoint(self._checkpoint_path, {**state, **facts})
            self._saved_at = time.monotonic()
            self._saving_took = self._saved_at - started
        if self._stop.received is not None:
            raise Interrupted(self._stop.received)

    def discard_checkpoint(self) -> None:
        """The stage's result is saved; its checkpoint is no longer needed, and harms nobody where it must stay."""
        with suppress(RunError):
            remove(self._checkpoint_path)

    @property
    def _checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"


def choose_device(config: EngineConfig) -> "torch.device":
    """The device to compute on; `auto` takes a GPU where there is one."""
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('engine.device = "cuda", but torch finds no CUDA device here. Use "auto" or "cpu".')
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if chosen == "cuda":
        # torch prefers cuDNN's attention on new GPUs, which plans anew, for half a second, every shape
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(chosen)


def choose_dtype(config: EngineConfig, device: "torch.device") -> "torch.dtype":
    """The dtype of the compute weights; `auto` is bf16 on a GPU and fp32 on a CPU."""
    import torch

    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
