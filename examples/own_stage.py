"""A stage of one's own: of four answers to each prompt the best by the rewards, from which stage 1 then learns.

python examples/own_stage.py MODEL REWARD PROMPTS.jsonl DIR

Its entry stands at the end; `run` is its work. Source: Dong et al. 2023, arXiv:2304.06767.
"""

import sys
from pathlib import Path

from chatsmith.config import Config
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.intake import deal
from chatsmith.pipeline import train
from chatsmith.runs.run import Run
from chatsmith.stages.inputs import ask, load_policy
from chatsmith.stages.rl import load_rewards
from chatsmith.stages.rollout import judge
from chatsmith.stages.table import Stage, add
from chatsmith.verdicts import Verdict

ANSWERS = 4
FILE = "demonstrations.jsonl"


def check(config, data) -> None:
    """There is nothing that this stage would refuse later."""


def run(run: Run) -> None:
    stage = run.stage("best")
    data = deal(run.config, run.data)["rl"]
    prompts = [*data.train, *data.held_out]
    policy = load_policy(run, run.config.actor_model)
    samples = ask(run, policy, prompts, len(prompts), each=ANSWERS)
    rewards = judge(samples, load_rewards(run), run.config.rl)[0].view(-1, ANSWERS)
    best = [samples[ANSWERS * prompt + number] for prompt, number in enumerate(rewards.argmax(1).tolist())]
    rows = [{"prompt": sample.messages[-1].content, "answer": sample.answer} for sample in best if sample.answer]
    save_jsonl(stage.directory / FILE, rows)
    gain = (rewards.max(1).values - rewards.mean(1)).mean().item()
    verdict = Verdict(gain > 0, f"the best of {ANSWERS} answers is {gain:.3f} above their mean")
    run.record("best", verdict, stage, None, {"best_gain": gain})


add(
    Stage(
        "best",
        short="best of four",
        heading="Best of four",
        title="best of four, what the next stage learns from",
        records="prompts",
        enters=(),
        models={},
        files=(FILE,),
        curves={},
        figures=(),
        takes="rl",
        gives={"sft": FILE},
        module=__name__,
    ),
    before="sft",
)

if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    model, reward, file, directory = sys.argv[1:]
    rl = {"rewards": [reward], "max_new_tokens": 64}
    config = Config(stages=("best", "sft"), actor_model=model, data={"sources": [f"rl:{file}"]}, rl=rl)
    train(config, Path(directory), recipe="own_stage")
