"""The default recipe, whole: seconds per phase and what was learned.

    python benchmarks/pipeline.py                     seed 1
    python benchmarks/pipeline.py --seeds 1 2 3       a table over seeds

Every run is a fresh process in a temporary directory. The last line of output is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median


def run(seed: int, extra: list[str], directory: Path) -> dict:
    """One run of `chatsmith train`; its manifest."""
    command = [sys.executable, "-m", "chatsmith", "train", "--seed", str(seed), "--run-dir", str(directory), "--force"]
    subprocess.run([*command, *extra], check=True, stdout=sys.stderr)
    return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))


def phases(directory: Path) -> dict[str, float]:
    """Seconds of stage 3 by phase, from its metrics."""
    steps = [json.loads(line) for line in (directory / "rl" / "metrics.jsonl").open(encoding="utf-8")]
    names = [name for name in steps[0] if name.startswith("time/")]
    return {name.removeprefix("time/"): round(sum(step[name] for step in steps), 1) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory")
    arguments, extra = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in arguments.seeds:
            directory = (arguments.keep or Path(temporary)) / f"seed-{seed}"
            manifest = run(seed, extra, directory)
            summary = manifest["summary"]
            rows.append(
                {
                    "seed": seed,
                    "seconds": summary["seconds"],
                    **{f"{stage}_s": entry["seconds"] for stage, entry in manifest["stages"].items()},
                    "rl_phases_s": phases(directory),
                    **{
                        key: summary[key]
                        for key in ("reward_accuracy", "gold_sft", "gold_rl", "gold_gain", "gold_gain_ci95", "kl_last")
                    },
                    "components": summary["gold_components"],
                    "accuracy_by_aspect": manifest["stages"].get("reward", {}).get("accuracy_by_aspect"),
                }
            )
    print(f"{'seed':>4} {'total s':>8} {'sft':>6} {'reward':>7} {'rl':>6} {'gold SFT':>9} {'gold PPO':>9}  gain [95 %]")
    for row in rows:
        low, high = row["gold_gain_ci95"]
        print(
            f"{row['seed']:>4} {row['seconds']:>8.0f} {row['sft_s']:>6.0f} {row['reward_s']:>7.0f} {row['rl_s']:>6.0f} "
            f"{row['gold_sft']:>9.3f} {row['gold_rl']:>9.3f}  {row['gold_gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    print(
        json.dumps(
            {
                "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "commit": manifest["commit"],
                "seconds_median": median(row["seconds"] for row in rows),
                "gold_gain_min": min(row["gold_gain"] for row in rows),
                "runs": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
