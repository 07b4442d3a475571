"""A judge and a stage of a user's own, as the documents and the examples have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JUDGE = """
def score(samples):
    return [{"total": min(1.0, len(s.answer) / 40), "loud": float("!" in s.answer)} for s in samples]
"""
RECIPE = """
actor_model = "{model}"
judge = "{judge}"
stages = ["sft", "label", "reward", "rl"]
[data]
sources = ["{pairs}"]
"""


def written(tmp_path, model, pairs, judge="judge.py:score", code=JUDGE):
    (tmp_path / "judge.py").write_text(code)
    (tmp_path / "mine.toml").write_text(RECIPE.format(model=model, judge=judge, pairs=pairs))
    return ("train", "mine.toml", "--run-dir", "run", "--force")


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_judge_of_ones_own_labels_probes_and_judges(chatsmith, model_directory, pairs, tmp_path):
    command = written(tmp_path, model_directory(), f"sft,rl:{pairs}")  # no preferences but those by the judge
    result = chatsmith(*command, "--data.split", "[1, 0, 3]", "--rl.max_new_tokens", "24")
    assert result.returncode == 0, result.stderr
    assert result.stdout.index("runs your code: judge.py:score (the judge)") < result.stdout.index("Reading the data")
    assert "Stage 2 of 4: labels" in result.stdout and "What the gold judge says" in result.stdout
    run = tmp_path / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["sft", "label", "reward", "rl"]
    rows = read_rows(run / "label" / "preferences.jsonl")
    report = manifest["stages"]["label"]["report"]
    assert len(rows) == report["pairs"] - report["ties"] > 0
    said = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows]
    assert all(min(40, better) > min(40, worse) for better, worse in said)
    low, high = manifest["summary"]["gold_gain_ci95"]
    assert low <= manifest["summary"]["gold_gain"] <= high
    assert set(manifest["summary"]["gold_components"]) <= {"loud"}
    assert "final_judge" not in manifest["stages"]["rl"]
    assert "gold/total" in read_rows(run / "rl" / "metrics.jsonl")[0]
    assert {"sft_gold", "rl_gold", "ema_gold"} <= set(read_rows(run / "rl" / "samples.jsonl")[0])
    (run / "label").rename(run / "elsewhere")  # finished, and its file gone: nothing is labelled again unasked
    (run / "elsewhere").rename(run / "label")
    again = chatsmith(*command, "--data.split", "[1, 0, 3]", "--rl.max_new_tokens", "24", "--from", "label")
    assert again.returncode == 0, again.stderr
    assert read_rows(run / "label" / "preferences.jsonl") == rows


@pytest.mark.parametrize(
    ("judge", "code", "said"),
    [
        ("judge.py:nothing", JUDGE, "has no function 'nothing'"),
        ("judge.py:score", "def score(samples):\n    return 1\n", "judge 'score' returned int"),
    ],
)
def test_a_broken_judge_is_one_error(chatsmith, model_directory, pairs, tmp_path, judge, code, said):
    result = chatsmith(*written(tmp_path, model_directory(), pairs, judge, code))
    assert result.returncode == 1
    assert said in result.stderr and "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_missing_file_of_questions_is_refused_before_any_work(chatsmith, model_directory, pairs, tmp_path):
    command = written(tmp_path, model_directory(), pairs)
    result = chatsmith(*command, "--label.sources", '["nowhere.jsonl"]')
    assert result.returncode == 1 and "nowhere.jsonl" in result.stderr
    assert not (tmp_path / "run").exists()
    weighted = chatsmith(*command, "--label.sources", f'["rl:{pairs}"]')
    assert weighted.returncode == 1 and "all of it is used here" in weighted.stderr


OWN = """
import sys
import own_stage
from pathlib import Path
from chatsmith.config import Config
from chatsmith.pipeline import train
config = Config(
    stages=("best", "sft"), actor_model=sys.argv[1], data={"sources": ["rl:prompts.jsonl"]},
    rl={"rewards": ["short.py:short"], "max_new_tokens": 32}, sft={"lr": 1e-3, "batch": 8},
)
train(config, Path("run"), recipe="own", force=True, restart_from=sys.argv[2] or None)
"""


def test_the_example_of_a_stage_trains_on_what_it_made(tmp_path, model_directory):
    prompts = [{"prompt": f"Say something about the number {i}."} for i in range(300)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "short.py").write_text("def short(samples):\n    return [-float(len(s.answer)) for s in samples]\n")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "examples")))

    def start(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            timeout=300,
        )

    result = start("-c", OWN, model_directory(), "")
    assert result.returncode == 0, result.stderr
    assert "Stage 2 of 2: supervised fine-tuning" in result.stdout
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["best", "sft"]
    assert manifest["stages"]["best"]["status"] == "passed" and manifest["summary"]["best_gain"] > 0
    file = tmp_path / "run" / "best" / "demonstrations.jsonl"
    rows = read_rows(file)
    assert {row["prompt"] for row in rows} <= {row["prompt"] for row in prompts} and len(rows) > 200
    learned = manifest["stages"]["sft"]["report"]
    assert learned["held_out_loss_last"] < learned["held_out_loss_first"]
    again = start("-c", OWN, model_directory(), "sft")
    assert again.returncode == 0 and "best: finished before, passed" in again.stdout, again.stderr
    anew = start("-c", OWN, model_directory(), "best")
    assert anew.returncode == 0 and "finished before" not in anew.stdout and read_rows(file) == rows, anew.stderr
    unused = start(ROOT / "examples" / "own_stage.py")
    assert unused.returncode == 1 and "python examples/own_stage.py MODEL" in unused.stderr
