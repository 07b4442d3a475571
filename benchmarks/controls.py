"""What the default recipe's gain is not: four controls, each a changed copy of the same run.

    python benchmarks/controls.py [--seed 1] [--keep DIR]

base        the recipe itself
shuffled    preference labels without meaning: the gain must vanish
more_sft    stage 1 continued for the time that PPO took: how much of the gain is more training?
one_epoch   PPO with one epoch per rollout instead of several, equal samples
no_kl       PPO without the KL penalty: the reward climbs, gold falls

The last line of output is one JSON object.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import chatsmith
from chatsmith.evaluate import paired_difference
from chatsmith.gold import GoldScores, open_judge
from chatsmith.resolve import read_recipe, resolve
from chatsmith.world.material import ordinary

FIGURES = ("gold_sft", "gold_rl", "gold_gain", "gold_gain_ci95", "reward_mean_first", "reward_mean_last", "kl_last")


def train(directory: Path, seed: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "chatsmith", "train", "tiny-cpu", "--force"]
    command += ["--seed", str(seed), "--run-dir", str(directory), *options]
    print("$", " ".join(command[2:]), file=sys.stderr)
    subprocess.run(command, check=True, stdout=sys.stderr)
    manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def figures(manifest: dict[str, Any]) -> dict[str, Any]:
    summary = manifest["summary"]
    return {name: summary[name] for name in FIGURES} | {
        "right_on_polite_prompts": summary["gold_components"]["right_on_polite_prompts"],
        "rl_seconds": manifest["stages"]["rl"]["seconds"],
    }


def gold(run: Path, seed: int) -> GoldScores:
    """Of the SFT model of a run."""
    config = ordinary(resolve([("tiny-cpu", read_recipe("tiny-cpu")), ("benchmark", {"seed": seed})]), run)
    judge = open_judge(config, {})
    assert judge is not None
    return judge.scores(chatsmith.load(run / "sft" / "model", device="cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory; a finished base run is used again")
    arguments = parser.parse_args()
    seed, result = arguments.seed, {}
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        base = train(root / "base", seed)
        result["base"] = figures(base)

        for name, options in (("one_epoch", ["--rl.epochs", "1"]), ("no_kl", ["--rl.kl_coef", "0"])):
            shutil.copytree(root / "base", root / name, dirs_exist_ok=True)
            result[name] = figures(train(root / name, seed, "--from", "rl", *options))

        # Equal time: SFT for its own seconds plus those of PPO, preferences and reward model left aside.
        sft_s, rl_s = (base["stages"][stage]["seconds"] for stage in ("sft", "rl"))
        epochs = round((sft_s + rl_s) / sft_s, 2)
        train(root / "more_sft", seed, "--only", "sft", "--sft.epochs", str(epochs))
        before, after = (gold(root / name, seed) for name in ("base", "more_sft"))
        gain = paired_difference(before.totals(), after.totals())
        result["more_sft"] = {
            "epochs": epochs,
            "gold_gain": gain.value,
            "gold_gain_ci95": [gain.low, gain.high],
            "right_on_polite_prompts": [s.parts()["right_on_polite_prompts"] for s in (before, after)],
        }
        result["shuffled"] = figures(train(root / "shuffled", seed, "--world.label_noise", "0.5"))
    for name, row in result.items():
        low, high = row["gold_gain_ci95"]
        print(f"{name:12} gold gain {row['gold_gain']:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(json.dumps({"seed": seed, "commit": base["commit"], **result}))


if __name__ == "__main__":
    main()
