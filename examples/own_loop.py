"""A training loop of one's own from chatsmith's parts, with an advantage estimator of one's own.

python examples/own_loop.py ACTOR REWARD PROMPTS.jsonl DIR

For example, after `make demo`:

python examples/own_loop.py runs/tiny-cpu/sft/model runs/tiny-cpu/reward/model runs/tiny-cpu/data/prompts.jsonl mine
"""

import json
import sys
from pathlib import Path

from leave_one_out import leave_one_out

import chatsmith

STEPS, PROMPTS, SAMPLES = 20, 32, 4
if len(sys.argv) != 5:
    sys.exit(__doc__)
actor, reward, file, directory = sys.argv[1:]
questions = [json.loads(line)["prompt"] for line in Path(file).read_text(encoding="utf-8").strip().split("\n")]

config = chatsmith.Config(rl={"samples_per_prompt": SAMPLES, "max_new_tokens": 16, "lr": 2e-4, "kl_coef": 0.15})
policy = chatsmith.load(actor)
trainer = chatsmith.PolicyTrainer(policy, [chatsmith.load_reward(reward)], config, steps=STEPS, estimator=leave_one_out)
for step in range(STEPS):
    experience, metrics = trainer.make_experience(
        [questions[(step * PROMPTS + i) % len(questions)] for i in range(PROMPTS)]
    )
    metrics |= trainer.update(experience)
    print(f"step {step:2}  reward {metrics['rl/reward_mean']:+.3f}  KL {metrics['rl/kl']:.3f}")
policy.save(directory)
