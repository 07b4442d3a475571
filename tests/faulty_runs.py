"""Runs a tiny run once for each point at which its disk fails, and once more without the fault; prints JSON lines.

A program of its own, because tests/faults.c must be loaded before Python. What takes long to import is imported once;
every run is a fork. Called by e2e/test_faults.py: LIBRARY MODEL PAIRS FOLDER.
"""

import ctypes
import errno
import gc
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.figure
import transformers.models.llama.modeling_llama  # noqa: F401
from e2e.conftest import SMALL

import chatsmith.pipeline  # noqa: F401, with all that a run needs
from chatsmith.cli import main
from chatsmith.cpu.attention import compiled_attention
from chatsmith.data.store import code_hash

CREATE, WRITE, MOVE, REMOVE, SYNC = 1, 2, 4, 8, 16
GROWS = CREATE | WRITE | MOVE | SYNC  # what needs room
CHANGES = CREATE | MOVE | REMOVE  # what needs a right or a file system that can be written
POINTS = 10  # of each kind
FAULTS = {  # which operations fail so, and whether all later ones do too
    "ENOSPC": (GROWS, True),
    "EROFS": (CHANGES, True),
    "EACCES": (CHANGES, True),
    "EIO": (GROWS | REMOVE, False),
}
TINY = [
    "--sft.epochs 1",
    "--sft.batch 16",
    "--reward.epochs 1",
    "--reward.batch 16",
    "--rl.rollouts 8",
    "--rl.epochs 1",
    "--rl.steps 2",
    "--rl.max_new_tokens 4",
]


class Runs:
    """Forks of this process that each run the command once."""

    def __init__(self, library: str, model: str, pairs: str, folder: Path) -> None:
        self.faults = ctypes.CDLL(library)
        self.faults.faults_count.restype = ctypes.c_long
        self.folder = folder
        small = [part for option in SMALL + TINY for part in option.split()]
        self.command = ["train", "--actor-model", model, "--data", pairs, "--force", "--engine.save_every_s", "0"]
        self.command += [*small, "--run-dir"]

    def __call__(self, place: Path, nth: int, number: int, kinds: int, stays: bool) -> dict[str, Any]:
        """Run in `place`, with that fault; what came of it."""
        said = self.folder / "said"
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(os.open(f"{said}.out", os.O_RDWR | os.O_CREAT | os.O_TRUNC), 1)
                os.dup2(os.open(f"{said}.err", os.O_RDWR | os.O_CREAT | os.O_TRUNC), 2)
                place.mkdir(exist_ok=True)
                os.environ["CHATSMITH_CACHE"] = str(place / "cache")
                sys.argv = ["chatsmith", *self.command, str(place / "run")]
                self.faults.faults_arm(os.fsencode(place), nth, number, kinds, stays)
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                self.faults.faults_arm(b"", -1, 0, 0, 0)
                counts = {kind: self.faults.faults_count(kind) for kind in (CREATE, WRITE, MOVE, REMOVE, SYNC)}
                Path(f"{said}.count").write_text(json.dumps([[kind, count] for kind, count in counts.items()]))
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {
            "code": code,
            "counts": json.loads(Path(f"{said}.count").read_text()),
            "out": Path(f"{said}.out").read_text(),
            "err": Path(f"{said}.err").read_text(),
            "locked": (place / ".run.lock").exists(),
            "status": status(place / "run"),
            "weights": weights(place / "run"),
            "left": sorted(str(path.relative_to(place)) for path in place.rglob(".*")),
        }


def counted_of(outcome: dict[str, Any], kinds: int) -> int:
    """Operations of these kinds in a run."""
    return sum(count for kind, count in outcome["counts"] if kind & kinds)


def status(run: Path) -> str:
    manifest = run / "manifest.json"
    return json.loads(manifest.read_text())["status"] if manifest.exists() else ""


def weights(run: Path) -> dict[str, str]:
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(run.rglob("*.safetensors"))
        if ".partial" not in str(file)
    }


def work(library: str, model: str, pairs: str, folder: str) -> None:
    runs = Runs(library, model, pairs, Path(folder))
    os.environ["CHATSMITH_CACHE"] = str(Path(folder) / "compiled")
    compiled_attention()
    code_hash()
    matplotlib.figure.Figure().savefig(os.devnull, format="svg")
    gc.freeze()  # pages that nothing touches are not copied
    whole = runs(Path(folder) / "whole", -1, 0, 0, False)
    print(json.dumps({"fault": "", "first": whole}), flush=True)
    rng = random.Random(0)
    for name, (kinds, stays) in FAULTS.items():
        counted = counted_of(whole, kinds)
        for point in range(POINTS):  # one in each of as many equal parts
            nth = int((point + rng.random()) * counted / POINTS)
            place = Path(folder) / f"{name}-{point}"
            first = runs(place, nth, getattr(errno, name), kinds, stays)
            again = runs(place, -1, 0, 0, False)
            print(json.dumps({"fault": f"{name} {point}", "nth": nth, "first": first, "again": again}), flush=True)


if __name__ == "__main__":
    work(*sys.argv[1:])
