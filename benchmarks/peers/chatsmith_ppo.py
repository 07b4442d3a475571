"""Our PPO step with critic: `train_rl` as the command line runs it, one step per line on stdin.

Usage: chatsmith_ppo.py MATERIAL
"""

import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pace import Pace
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatsmith.config import Config, RlConfig
from chatsmith.console import Screen
from chatsmith.models.critic import critic_from_reward_model
from chatsmith.models.reward import Reward, RewardModel
from chatsmith.runtime import StageRun, StopSignals
from chatsmith.stages.rl import train_rl
from chatsmith.stages.rollout import encode_questions
from chatsmith.types import Message, Record


class PacedRun(StageRun):
    """Meters each passage through the loop's body, logging included. Saves no checkpoints; neither do the others."""

    def __init__(self, directory: Path) -> None:
        show = partial(Screen().stage, "rl", "PPO step")
        super().__init__(directory, save_every_s=math.inf, stop=StopSignals(), show=show)
        self._pace = Pace()
        self._answer_length = 0.0

    def steps(self, start: int, total: int) -> Iterator[int]:
        for step in super().steps(start, total):
            self._pace.wait()
            yield step
            self._pace.report(self._answer_length)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        self._answer_length = metrics["rl/answer_length"]


def main(material: Path) -> None:
    config = Config(
        rl=RlConfig(
            steps=1_000_000,  # ends with stdin
            rollouts=32,
            max_new_tokens=64,
            epochs=1,
            minibatches=1,
            warmup=0,
            truncated_score="none",  # all answers are cut at 64 tokens: the reward model's score counts
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(material / "policy")
    stops = (tokenizer.eos_token_id,)
    # not by `load_actor`: it would make room for EOS and padding
    actor = AutoModelForCausalLM.from_pretrained(material / "policy")
    reward_model = AutoModelForSequenceClassification.from_pretrained(material / "reward")
    function = RewardModel(reward_model, tokenizer, stops, 0.0, 1.0, config.engine.max_batch_tokens)
    texts = [tokenizer.decode(ids) for ids in json.loads((material / "prompts.json").read_text())]
    records = [Record(prompt=(Message("user", text),)) for text in texts]
    prompts = encode_questions(tokenizer, records, max_tokens=64)
    assert {len(tokens) for tokens in prompts.tokens} == {64}
    train_rl(
        actor,
        critic_from_reward_model(reward_model, mean=0.0, std=1.0),
        tokenizer,
        prompts,
        prompts.first(2),
        [Reward("model", function, 1.0, 0.0, 1.0)],
        config,
        PacedRun(material / "run"),
        stops=stops,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
