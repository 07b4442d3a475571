"""A worker's side of the conversation with ppo_step.py: one step per line on stdin, one JSON object per step on stdout.

Runs in every environment. What a library prints goes to stderr, so that stdout holds nothing but the replies.
"""

import json
import os
import sys
import time

from transformers import TrainerCallback


class Pace:
    """Meters the steps: `wait` before each, `report` after each."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Block until the next step may run; ends the process when there is none."""
        if not sys.stdin.readline():
            raise SystemExit
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def report(self, answer_length: float) -> None:
        """Reply with the seconds since `wait` and the mean length in tokens of the answers."""
        seconds = {"cpu_s": time.process_time() - self._cpu_s, "wall_s": time.perf_counter() - self._wall_s}
        print(json.dumps({**seconds, "answer_length": answer_length}), file=self._replies, flush=True)


class PacedCallback(TrainerCallback):
    """Meters a Hugging Face training loop. What the loop does behind `on_step_end` counts for its next step."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.answer_length = 0.0  # set by whoever sees the answers

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._pace.wait()

    def on_step_end(self, *_: object, **__: object) -> None:
        self._pace.report(self.answer_length)
        self._pace.wait()
