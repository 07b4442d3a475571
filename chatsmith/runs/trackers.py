"""Metrics to TensorBoard, Weights & Biases or trackio, where the user asks for it; their packages are extras.

A tracker gets every finite number of `metrics.jsonl` under its own name. Its step runs on over the whole run: the steps
of the stages before are added. A resumed run continues after its checkpoint. With `--from` the id of the run changes,
since W&B and trackio never forget a step.
"""

import importlib.util
import io
import json
import math
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any

from chatsmith.config import Config, StageName, TrackerName
from chatsmith.errors import ConfigError, RunError
from chatsmith.files.checkpoint import read_jsonl, save_text
from chatsmith.files.received import read_bytes
from chatsmith.files.writing import make_directory, remove
from chatsmith.screen.text import quoted
from chatsmith.stages.table import BY_NAME

PROJECT = "chatsmith"  # in W&B and trackio


class TensorBoard:
    """Event files in DIR/trackers/tensorboard: `tensorboard --logdir DIR`."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._config, self._directory = config, directory / "trackers" / "tensorboard"
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # readers forget what an earlier process wrote at this step or later
            self._writer = SummaryWriter(str(self._directory), purge_step=step)
            if step == 0:
                text = json.dumps(self._config.model_dump(mode="json"), indent=2)
                self._writer.add_text("config", f"```\n{text}\n```", 0)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a process that is killed leaves no gap

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Account:
    """A run of the project `chatsmith` in W&B, or in trackio, which speaks its words.

    Args:
        own: what `init` of the one package takes and that of the other does not.
        next_step: where its run says which step comes next.
        log: what its `log` takes besides metrics and step.
    """

    def __init__(self, package: Any, config: Config, own: dict[str, Any], *, next_step: str, **log: Any) -> None:
        with _no_questions():
            self._run = package.init(project=PROJECT, config=config.model_dump(mode="json"), resume="allow", **own)
        self._package, self._options = package, log
        self._next = getattr(self._run, next_step, 0)  # of a resumed run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self._next:  # what it already has is the same: a resumed run repeats itself exactly
            self._run.log(dict(metrics), step=step, **self._options)

    def close(self) -> None:
        with _no_questions():
            self._package.finish()


def _wandb(config: Config, directory: Path) -> Account:
    """Under the account that wandb is logged in with; its files in DIR/trackers."""
    import wandb

    make_directory(directory / "trackers")
    # numbers only: no code, no output, no git remote
    settings = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True)
    own = {"name": directory.name, "id": run_id(directory), "dir": directory / "trackers", "settings": settings}
    try:
        return Account(wandb, config, own, next_step="step", commit=True)
    except wandb.errors.Error as error:
        raise ConfigError(
            f"wandb: {error} Or keep the metrics on this machine: WANDB_MODE=offline, or --track tensorboard."
        ) from error


def _trackio(config: Config, directory: Path) -> Account:
    """In trackio's own folder on this machine: `trackio show`."""
    import trackio

    own = {"name": run_id(directory), "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    return Account(trackio, config, own, next_step="_next_step")  # it says so nowhere else


OPEN: dict[TrackerName, Callable[[Config, Path], TensorBoard | Account]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


class Tracker:
    """Where metrics go besides `metrics.jsonl`. It may fail: the run goes on without it, and says so once."""

    def __init__(self, name: str, opened: TensorBoard | Account, warn: Callable[[str], None]) -> None:
        self._name, self._opened, self._warn = name, opened, warn
        self._works = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda: self._opened.log(step, metrics))

    def close(self) -> None:
        self._try(self._opened.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            if self._works:
                call()
        except Exception as error:  # a full disk, its own data base, a network: each package has errors of its own
            self._works = False
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._warn(f"{self._name}: failed, and gets no more metrics ({reason}); metrics.jsonl holds all of them")


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raises:
    ConfigError: if the package of a tracker is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trackers: the package {name} is not installed. Type pip install 'chatsmith[{name}]', "
                f"or leave out --track {name}."
            )


@contextmanager
def open_trackers(config: Config, directory: Path, warn: Callable[[str], None]) -> Iterator[list[Tracker]]:
    """The run's trackers, closed at the end of the context.

    Args:
        warn: told when one of them fails later on.
    Raises:
        ConfigError: if one of them cannot be opened.
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Tracker(name, OPEN[name](config, directory), warn)))
            for name in dict.fromkeys(config.trackers)
        ]


def first_step(directory: Path, stage: StageName) -> int:
    """The steps of the stages before `stage`: where its own begin for a tracker."""
    return sum(len(read_jsonl(directory / before / "metrics.jsonl")) for before in takewhile(stage.__ne__, BY_NAME))


def feed(trackers: Sequence[Tracker], offset: int, step: int, metrics: Mapping[str, float]) -> None:
    """Give one step's finite metrics to every tracker, `offset` steps later."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for tracker in trackers:
        tracker.log(offset + step, finite)


def run_id(directory: Path) -> str:
    """What W&B and trackio know this run by, also when it is resumed.

    Raises:
        RunError: if the file that holds it says something else, which would become part of their paths.
    """
    path = directory / "trackers" / "id"
    if not path.exists():
        name = re.sub(r"[^\w-]+", "-", directory.name, flags=re.ASCII)
        save_text(path, f"{name}-{secrets.token_hex(4)}")
    text = read_bytes(path, limit=1024, refuse=RunError).decode("ascii", "replace")
    if not re.fullmatch(r"[\w-]+", text, re.ASCII):
        raise RunError(f"{quoted(path)}: not the id of a run. Delete the file: the run then gets a new one.")
    return text


def forget(directory: Path) -> None:
    """The run's history changes from here on: trackers that cannot forget a step begin a new run."""
    remove(directory / "trackers" / "id")


@contextmanager
def _no_questions() -> Iterator[None]:
    """Inside, nothing is asked on the terminal, and what a package prints to standard output is lost."""
    stdin = sys.stdin
    with redirect_stdout(io.StringIO()), io.StringIO() as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
