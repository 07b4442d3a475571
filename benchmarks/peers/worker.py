"""One optimisation step per line on stdin, each answered by its seconds as JSON. Usage: worker.py SYSTEM MATERIAL

Imports stand inside the functions: every system has an environment of its own. What libraries print goes to stderr.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

STEPS = 1_000_000  # stdin ends earlier
TRL = {  # settings of both TRL trainers
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "temperature": 1.0,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


class Pace(TrainerCallback):
    """Meters steps. What a Hugging Face loop does behind `on_step_end`, such as logging, counts for its next step."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Block until the next step may run; ends the process when there is none."""
        if not sys.stdin.readline():
            raise SystemExit
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def report(self) -> None:
        seconds = {"cpu_s": time.process_time() - self._cpu_s, "wall_s": time.perf_counter() - self._wall_s}
        print(json.dumps(seconds), file=self._replies, flush=True)

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.wait()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.report()
        self.wait()


def chatsmith(
    material: Path,
    tokenizer: Any,
    prompts: list[list[int]],
    *,
    samples: int = 2,
    old_logprobs: str = "auto",
    algorithm: str = "ppo",
) -> None:
    """`train_rl` as the command line runs it: 32 answers, `samples` to each prompt."""
    from chatsmith.assistant import Assistant
    from chatsmith.config import Config, RlConfig
    from chatsmith.models.critic import critic_from_reward_model
    from chatsmith.models.reward import Reward, RewardModel
    from chatsmith.runs.runtime import StageRun, StopSignals
    from chatsmith.screen.console import Screen
    from chatsmith.stages.rl import train_rl
    from chatsmith.stages.rollout import Prompts
    from chatsmith.types import Message, Record

    class PacedRun(StageRun):
        def steps(self, start: int, total: int) -> Iterator[int]:
            for step in super().steps(start, total):
                pace.wait()
                yield step
                pace.report()

    pace = Pace()
    run = PacedRun(
        material / f"run {samples} {old_logprobs} {algorithm}",
        save_every_s=math.inf,
        stop=StopSignals(),
        show=lambda total: Screen().stage("rl", "PPO", total),
    )
    # All answers are cut off at 64 tokens: the reward model's score is to count nevertheless.
    size = {"rollouts": 32, "samples_per_prompt": samples, "max_new_tokens": 64, "epochs": 1, "minibatches": 1}
    chosen = {"truncated_score": "none", "old_logprobs": old_logprobs}
    config = Config(rl=RlConfig(algorithm=algorithm, steps=STEPS, warmup=0, kl_coef=0.05, **size, **chosen))
    # Not by `load_actor`, which would make room for EOS and padding in the vocabulary.
    actor = AutoModelForCausalLM.from_pretrained(material / "policy")
    reward_model = AutoModelForSequenceClassification.from_pretrained(material / "reward")
    stops = (tokenizer.eos_token_id,)
    reward = RewardModel(reward_model, tokenizer, stops, 0.0, 1.0, config.engine.max_batch_tokens)
    policy = Assistant(actor, tokenizer, stops, max_tokens=config.data.max_tokens)
    records = tuple(Record(prompt=(Message("user", tokenizer.decode(ids)),)) for ids in prompts)
    asked = Prompts(records, tuple(map(tuple, prompts)), dropped_too_long=0)
    has_critic = config.rl.baseline == "critic"
    critic = critic_from_reward_model(reward_model, mean=0.0, std=1.0) if has_critic else None
    rewards = [Reward("model", reward, 1.0, mean=0.0, std=1.0)]
    train_rl(policy, critic, asked, asked.first(16), rewards, config, run)


def trl_rloo(material: Path, tokenizer: Any, prompts: list[list[int]]) -> None:
    """RLOO of the current TRL: 16 prompts x 2 answers, no critic."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    own = {"num_generations": 2, "num_iterations": 1, "max_completion_length": 64, "beta": 0.05}
    RLOOTrainer(
        model=str(material / "policy"),
        reward_funcs=str(material / "reward"),
        args=RLOOConfig(str(material / "rloo"), max_steps=STEPS, **own, **TRL),
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(ids) + " " for ids in prompts]}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        callbacks=[Pace()],
    ).train()


def trl_grpo(material: Path, tokenizer: Any, prompts: list[list[int]]) -> None:
    """GRPO of the current TRL: 16 prompts x 2 answers, with a reference, the loss of its paper."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    own = {"num_generations": 2, "num_iterations": 1, "max_completion_length": 64, "beta": 0.05, "loss_type": "grpo"}
    GRPOTrainer(
        model=str(material / "policy"),
        reward_funcs=str(material / "reward"),
        args=GRPOConfig(str(material / "grpo"), max_steps=STEPS, **own, **TRL),
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(ids) + " " for ids in prompts]}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        callbacks=[Pace()],
    ).train()


def trl_ppo(material: Path, tokenizer: Any, prompts: list[list[int]]) -> None:
    """PPO with critic of TRL 1.12.0, the last release that holds it."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    own = {"num_ppo_epochs": 1, "num_mini_batches": 1, "response_length": 64, "kl_coef": 0.05}
    dataset = Dataset.from_dict({"input_ids": prompts})
    PPOTrainer(
        args=PPOConfig(str(material / "ppo"), total_episodes=32 * STEPS, num_sample_generations=0, **own, **TRL),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(material / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(material / "policy"),
        reward_model=AutoModelForSequenceClassification.from_pretrained(material / "reward"),
        value_model=AutoModelForSequenceClassification.from_pretrained(material / "reward"),
        train_dataset=dataset,
        eval_dataset=dataset,  # its loader wants one; never read
        callbacks=[Pace()],
    ).train()


if __name__ == "__main__":
    systems = {
        "chatsmith": chatsmith,
        "chatsmith_forward": partial(chatsmith, old_logprobs="training"),
        "chatsmith_32": partial(chatsmith, samples=1),
        "chatsmith_rloo": partial(chatsmith, algorithm="rloo"),
        "chatsmith_grpo": partial(chatsmith, algorithm="grpo"),
        "trl_rloo": trl_rloo,
        "trl_grpo": trl_grpo,
        "trl_ppo": trl_ppo,
    }
    system, folder = systems[sys.argv[1]], Path(sys.argv[2])
    system(folder, AutoTokenizer.from_pretrained(folder), json.loads((folder / "prompts.json").read_text()))
