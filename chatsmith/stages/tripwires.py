"""What stage 3 must not do unnoticed. Each tripwire speaks once, at the step where it is touched."""

from collections.abc import Callable
from typing import Any

from chatsmith.config import Config

CONSTANT_STEPS = 3  # in a row
CONSTANT = 1e-6
ALL = 0.99


class Tripwires:
    """Looks at the metrics of every step.

    Args:
        warn: told what was touched.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self._config, self._warn = config, warn
        self._said: list[str] = []
        self._steps = 0
        self._constant = 0  # steps in a row in which every answer got the reward `_reward`
        self._reward = 0.0
        self._equal = 0  # steps in a row in which no prompt's answers could be told apart
        self._first_length = 0.0

    def check(self, metrics: dict[str, float]) -> None:
        """Warn, once each, of answers that are all cut off, rewards without spread, and bounds that are left."""
        gates = self._config.gates
        if self._steps == 0:
            self._first_length = metrics["rl/answer_length"]
        self._steps += 1
        cut_off = metrics["rl/truncation_rate"] >= ALL
        if cut_off:
            self._say(
                "truncated",
                "all answers are cut off at rl.max_new_tokens: raise it, or train the SFT model until its answers end",
            )
        reward = metrics["rl/reward_mean"]
        same = metrics["rl/reward_std"] < CONSTANT and (not self._constant or abs(reward - self._reward) < CONSTANT)
        self._constant, self._reward = self._constant + 1 if same else 0, reward
        if self._constant == CONSTANT_STEPS:
            self._say(
                "constant",
                f"every answer of {CONSTANT_STEPS} steps got the same reward, {reward:.3f}: nothing is learned from "
                "that. Look at the reward, and at the answers in rl/answers.jsonl",
            )
        self._check_groups(metrics)
        if metrics["rl/kl"] > gates.max_kl:
            self._say(
                "kl",
                f"KL of {metrics['rl/kl']:.2f} nats per token: above gates.max_kl = {gates.max_kl}. Raise rl.kl_coef",
            )
        if metrics.get("rl/entropy", gates.min_entropy) < gates.min_entropy:
            self._say("entropy", f"entropy fell below gates.min_entropy = {gates.min_entropy}: raise rl.kl_coef")
        ratio = metrics["rl/answer_length"] / self._first_length
        if not 1 / gates.max_length_ratio <= ratio <= gates.max_length_ratio:
            self._say(
                "length",
                f"answers are {ratio:.1f} times as long as at the start (gates.max_length_ratio = "
                f"{gates.max_length_ratio}): is the reward about length?",
            )

    def _check_groups(self, metrics: dict[str, float]) -> None:
        settings = self._config.rl
        self._equal = self._equal + 1 if metrics.get("rl/equal_groups", 0.0) >= ALL else 0
        if self._equal == CONSTANT_STEPS and (settings.baseline in ("others", "group") or settings.skip_equal_groups):
            self._say(
                "equal",
                f"in {CONSTANT_STEPS} steps all answers to a prompt got the same reward, whichever the prompt: nothing "
                "is learned from that. Look at the reward, give prompts that are neither too easy nor too hard, or "
                "raise rl.samples_per_prompt",
            )
        short = metrics.get("rl/answers", settings.rollouts) < settings.rollouts
        if short and settings.max_refills and metrics["rl/refills"] == settings.max_refills:
            self._say(
                "refills",
                f"after {settings.max_refills} refills (rl.max_refills) {metrics['rl/answers']:.0f} of "
                f"{settings.rollouts} answers have others to their prompt with another reward, and the step goes on "
                "with these. Give prompts that are neither too easy nor too hard, or raise rl.samples_per_prompt",
            )

    def _say(self, name: str, text: str) -> None:
        if name not in self._said:
            self._said.append(name)
            self._warn(f"step {self._steps - 1}: {text}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "said": self._said,
            "steps": self._steps,
            "constant": self._constant,
            "reward": self._reward,
            "equal": self._equal,
            "first_length": self._first_length,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._said, self._steps = state["said"], state["steps"]
        self._constant, self._reward = state["constant"], state["reward"]
        self._equal, self._first_length = state["equal"], state["first_length"]
