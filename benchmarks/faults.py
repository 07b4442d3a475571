"""Ten planted faults: does the verdict name the stage that is at fault?

    python benchmarks/faults.py [--keep DIR]

Each fault is planted in a copy of one healthy run of the default recipe, in the files or options that a user would have
got wrong; then the same command goes on. The stage that is blamed is the one that an error names, else the first that
failed or was warned of; the healthy run itself must not be blamed. The last line of output is one JSON object.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("sft", "label", "reward", "rl")
NAN_REWARD = """
def sometimes(samples):
    return [float("nan") if i % 5 == 0 else float(len(s.answer) < 20) for i, s in enumerate(samples)]
"""


@dataclass(frozen=True)
class Fault:
    """`plant` changes a copy of the healthy run of which only `kept` stages are finished, and returns options."""

    name: str
    blamed: str  # the stage that must be named
    kept: tuple[str, ...]
    plant: Callable[[Path], list[str]]


def rewrite_preferences(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
    file = run / "label" / "preferences.jsonl"
    rows = [change(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return []


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def said(row: dict[str, Any], side: str) -> int:
    """Characters of an answer."""
    return len(row[side][-1]["content"])


def bad_labels(run: Path) -> list[str]:
    return rewrite_preferences(run, swapped)


def shuffled_pairs(run: Path) -> list[str]:
    coin = random.Random(0)
    return rewrite_preferences(run, lambda row: swapped(row) if coin.random() < 0.5 else row)


def longer_is_preferred(run: Path) -> list[str]:
    return rewrite_preferences(run, lambda row: swapped(row) if said(row, "chosen") < said(row, "rejected") else row)


def wrong_template(run: Path) -> list[str]:
    file = run / "sft" / "model" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<user>", "<bot>"), encoding="utf-8")
    return []


def eos_stripped(run: Path) -> list[str]:
    file = run / "base" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("{{ eos_token }}", ""), encoding="utf-8")
    return []


def foreign_tokenizer(run: Path) -> list[str]:
    """The trained model as a base, beside a tokenizer of the same size that numbers its tokens otherwise."""
    shutil.rmtree(run / "base")
    shutil.copytree(run / "sft" / "model", run / "base")
    config = json.loads((run / "base" / "config.json").read_text())
    del config["vocabulary_sha256"], config["chat_template_sha256"]  # as with a model from elsewhere
    (run / "base" / "config.json").write_text(json.dumps(config))
    file = run / "base" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    plain = [token for token in vocabulary if token not in special]
    ids = [vocabulary[token] for token in plain]
    random.Random(0).shuffle(ids)
    vocabulary |= dict(zip(plain, ids, strict=True))
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return []


def nan_reward(run: Path) -> list[str]:
    (run.parent / "nan_reward.py").write_text(NAN_REWARD)
    return ["--from", "rl", "--reward", f"{run.parent / 'nan_reward.py'}:sometimes"]


def no_kl(run: Path) -> list[str]:
    return ["--from", "rl", "--rl.kl_coef", "0", "--rl.schedule", "constant", "--rl.steps", "44"]


FAULTS = (
    Fault("healthy", "none", STAGES[:3], lambda run: []),
    Fault("bad reward labels: chosen and rejected mixed up", "reward", STAGES[:2], bad_labels),
    Fault("shuffled pairs: every label a coin's throw", "reward", STAGES[:2], shuffled_pairs),
    Fault("wrong template: turns of the SFT model's directory renamed", "sft", STAGES[:2], wrong_template),
    Fault("EOS stripped from the chat template", "sft", (), eos_stripped),
    Fault("learning rate x 100 in stage 1", "sft", (), lambda run: ["--from", "sft", "--sft.lr", "0.2"]),
    Fault("KL 0 at a constant rate, for twice as long", "rl", STAGES[:3], no_kl),
    Fault("NaN reward for every fifth answer", "rl", STAGES[:3], nan_reward),
    Fault("tokenizer mismatch: a base with a foreign tokenizer", "sft", (), foreign_tokenizer),
    Fault("reward hack by length: the longer answer is preferred", "reward", STAGES[:2], longer_is_preferred),
    Fault("frozen critic", "rl", STAGES[:3], lambda run: ["--from", "rl", "--rl.critic_lr", "1e-12"]),
)


def copy_with(healthy: Path, run: Path, kept: tuple[str, ...]) -> None:
    """A copy of the healthy run in which only `kept` stages count as finished; the others will run anew."""
    shutil.copytree(healthy, run)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"] = {stage: entry for stage, entry in manifest["stages"].items() if stage in kept}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def train(run: Path, options: list[str]) -> tuple[dict[str, Any], str]:
    """The manifest after the command, and the error that ended it."""
    command = [sys.executable, "-m", "chatsmith", "train", "tiny-cpu", "--run-dir", str(run), *options]
    print("$", " ".join(command[2:]), file=sys.stderr)
    result = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    print(result.stderr, file=sys.stderr)
    return json.loads((run / "manifest.json").read_text(encoding="utf-8")), result.stderr.strip()


def warnings_of(manifest: dict[str, Any]) -> list[str]:
    return [warning for entry in manifest["stages"].values() for warning in entry["warnings"]]


def blame(manifest: dict[str, Any], error: str, usual: list[str]) -> tuple[str, str]:
    """The stage that is named first, and in which words; what the stages say that no fault entered is `usual`."""
    if error and not error.startswith("GateFailed"):
        places = {"/base": "sft", "/sft/model": "sft", "/reward/model": "reward", "RewardError": "rl", " rl:": "rl"}
        return next((stage for place, stage in places.items() if place in error), "none"), error
    for stage, entry in manifest["stages"].items():
        if entry["status"] != "passed":
            return stage, entry["verdict"]
        if warnings := [warning for warning in entry["warnings"] if warning not in usual]:
            return stage, " | ".join(warnings)
    return "none", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="keep the runs in this directory; a healthy run there is used again")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        usual = warnings_of(train(root / "healthy", [])[0])
        for number, fault in enumerate(FAULTS):
            run = root / f"fault-{number}"
            shutil.rmtree(run, ignore_errors=True)
            copy_with(root / "healthy", run, fault.kept)
            manifest, error = train(run, fault.plant(run))
            stage, words = blame(manifest, error, usual)
            rows.append({"fault": fault.name, "expected": fault.blamed, "named": stage, "verdict": words})
    for row in rows:
        mark = "ok" if row["named"] == row["expected"] else "NO"
        print(f"{mark}  {row['fault']}: {row['named']}\n    {row['verdict']}")
    faults = rows[1:]
    named = sum(row["named"] == row["expected"] for row in faults)
    print(json.dumps({"named": named, "of": len(faults), "commit": manifest["commit"], "faults": rows}))


if __name__ == "__main__":
    main()
