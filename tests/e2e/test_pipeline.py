"""Whole runs: the contract for scripts, resuming, single stages."""

import json
import os

import pytest
import torch
from tiny import FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from chatsmith.config import Config
from chatsmith.pipeline import train
from chatsmith.resolve import nested, resolve
from chatsmith.world.judge import judge
from chatsmith.world.material import evaluation_tasks
from chatsmith.world.tasks import train_tasks


def read(directory):
    return json.loads((directory / "manifest.json").read_text())


def metrics(directory, stage):
    return [json.loads(line) for line in (directory / stage / "metrics.jsonl").read_text().splitlines()]


def test_three_stages_leave_everything_that_the_contract_promises(chatsmith, model_directory, pairs, tmp_path):
    run_dir = tmp_path / "run"
    base = model_directory("llama")
    arguments = ("train", "--actor-model", base, "--data", pairs, "--run-dir", run_dir, "--seed", 3, "--force")
    result = chatsmith(*arguments)
    assert result.returncode == 0, result.stderr
    assert "Stage 1 of 3" in result.stdout
    assert "Stage 3 of 3" in result.stdout

    manifest = read(run_dir)
    assert manifest["status"] in ("finished", "forced")
    summary = manifest["summary"]
    for key in ("seconds", "reward_accuracy", "reward_mean_first", "reward_mean_last", "kl_last"):
        assert isinstance(summary[key], float), key
    for stage in ("sft", "reward", "rl"):
        entry = manifest["stages"][stage]
        assert entry["status"] in ("passed", "forced")
        assert entry["verdict"]
        assert isinstance(entry["warnings"], list)
        assert entry["seconds"] > 0
        assert (run_dir / entry["model_dir"] / "config.json").exists()
        assert not (run_dir / stage / "checkpoint.pt").exists()
    assert manifest["config"]["seed"] == 3
    assert manifest["versions"]["torch"]

    ids = torch.tensor([[5, 6, 7]])
    for where in ("sft/model", "rl/actor", "rl/ema"):
        tokenizer = AutoTokenizer.from_pretrained(run_dir / where)
        assert AutoModelForCausalLM.from_pretrained(run_dir / where)(ids).logits.isfinite().all()
        assert tokenizer.chat_template
        readme = (run_dir / where / "README.md").read_text()
        assert readme.startswith('---\nlibrary_name: "transformers"\ntags: ["chatsmith", ')
        assert "Trained by chatsmith" in readme and f"Base: {base}\n" in readme
        assert f"- data {pairs}: no licence is stated\n" in readme
    umask = os.umask(0)
    os.umask(umask)
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {oct(0o666 & ~umask)}
    scorer = AutoModelForSequenceClassification.from_pretrained(run_dir / "reward" / "model")
    assert scorer.config.score_std > 0
    assert (run_dir / "rl" / "critic" / "value_head.safetensors").exists()

    steps = metrics(run_dir, "rl")
    assert [line["step"] for line in steps] == [0, 1, 2]
    for name in (
        *("rl/score_raw_mean", "reward/trained", "rl/reward_mean", "rl/reward_std", "rl/kl", "rl/kl_sequence"),
        *("rl/kl_old", "rl/entropy", "rl/clip_fraction", "rl/ratio_max", "rl/policy_loss", "rl/value_loss"),
        *("rl/explained_variance", "rl/advantage_std", "rl/answer_length", "rl/eos_rate", "rl/truncation_rate"),
        *("rl/excluded", "rl/grad_norm_actor", "rl/grad_norm_critic", "rl/lr", "rollout/logprob_gap_mean"),
        *("rollout/logprob_gap_max", "rollout/tokens_per_s", "update/tokens_per_s", "step/tokens_per_s", "step/mfu"),
        *("time/rollout_s", "time/score_s", "time/estimate_s", "time/update_s", "time/other_s", "memory/peak_gib"),
    ):
        assert isinstance(steps[-1][name], float), name

    page = (run_dir / "report.html").read_text()
    assert str(run_dir / "report.html") in result.stdout
    assert f"chatsmith chat {run_dir}" in result.stdout
    for stage in manifest["stages"].values():
        assert stage["status"].upper() in page.upper()
    (run_dir / "report.html").unlink()
    shown = chatsmith("report", run_dir, small=False)
    assert shown.stdout.strip() == str(run_dir / "report.html")
    assert (run_dir / "report.html").read_text() == page

    rows = [json.loads(line) for line in (run_dir / "rl" / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        assert "".join(text for text, _, _ in row["tokens"]).strip() == row["rl"]
        assert all(isinstance(kl, float) and isinstance(value, float) for _, kl, value in row["tokens"])

    again = chatsmith(*arguments)
    assert again.returncode == 0
    assert "sft: finished before" in again.stdout
    assert read(run_dir)["stages"] == manifest["stages"]

    other = chatsmith(*arguments, "--rl.kl_coef", "0.5")
    assert other.returncode == 1
    assert "rl.kl_coef (0.05 there, 0.5 here)" in other.stderr
    restarted = chatsmith(*arguments, "--rl.kl_coef", "0.5", "--from", "rl")
    assert restarted.returncode == 0, restarted.stderr
    assert read(run_dir)["stages"]["sft"] == manifest["stages"]["sft"]
    assert read(run_dir)["config"]["rl"]["kl_coef"] == 0.5


def test_a_failed_gate_stops_with_exit_code_2_and_force_goes_on(chatsmith, model_directory, tmp_path, pairs):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for index, row in enumerate(rows):  # labels without meaning
        if index % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    noise = tmp_path / "noise.jsonl"
    noise.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("train", "--actor-model", model_directory("llama"), "--data", noise, "--run-dir", tmp_path / "run")
    result = chatsmith(*arguments)
    assert result.returncode == 2, result.stderr
    assert "reward failed" in result.stderr
    manifest = read(tmp_path / "run")
    assert manifest["stages"]["reward"]["status"] == "failed"
    assert "rl" not in manifest["stages"]
    assert "no better than chance" in (tmp_path / "run" / "report.html").read_text()
    forced = chatsmith(*arguments, "--force")
    assert forced.returncode == 0, forced.stderr
    manifest = read(tmp_path / "run")
    assert manifest["status"] == manifest["stages"]["reward"]["status"] == "forced"
    assert "rl" in manifest["stages"]


def test_the_built_in_world_ends_with_gold_scores_and_the_same_questions_answered_twice(chatsmith, tmp_path):
    sizes = {"demonstrations": 800, "pairs_prompts": 60, "pairs_offline": 200, "prompts": 600}
    options = [part for key, value in sizes.items() for part in (f"--world.{key}", str(value))]
    result = chatsmith(
        *("train", "--run-dir", "run", "--force", "--rl.steps", "2", "--rl.rollouts", "32", "--data.held_out", "0.2"),
        *options,
        small=False,
    )
    assert result.returncode == 0, result.stderr
    summary = read(tmp_path / "run")["summary"]
    low, high = summary["gold_gain_ci95"]
    assert low <= summary["gold_gain"] <= high
    assert summary["gold_gain"] == pytest.approx(summary["gold_rl"] - summary["gold_sft"])
    assert set(summary["gold_components"]) == {"right", "polite", "concise", "ended", "right_on_polite_prompts"}
    assert "What the gold judge says" in result.stdout
    assert "Does it see what matters?" in result.stdout
    probed = [line for line in metrics(tmp_path / "run", "rl") if "gold/total" in line]
    assert [line["step"] for line in probed] == [0, 1]
    assert all(0 <= line[f"gold/{part}"] <= 1 for line in probed for part in ("total", "right", "polite", "ended"))
    asked = {json.loads(line)["prompt"] for line in (tmp_path / "run" / "data" / "prompts.jsonl").open()}
    assert not asked & {task.prompt for task in evaluation_tasks()}
    config = Config.model_validate(read(tmp_path / "run")["config"])
    tasks = {task.prompt: task for task in train_tasks(config.world.prompts, config.seed + 1)}
    rows = [json.loads(line) for line in (tmp_path / "run" / "rl" / "samples.jsonl").open()]
    for row in rows:
        for who in ("sft", "rl", "ema"):
            assert row[f"{who}_right"] == (judge(tasks[row["prompt"]], row[who], True).right == 1.0)
    assert result.stdout.splitlines()[-1].endswith(
        "--world.demonstrations 800 --world.pairs_prompts 60 --world.pairs_offline 200 --world.prompts 600 "
        "--run-dir run-no-kl --from rl --force"
    )
    (tmp_path / "run").rename(tmp_path / "moved")
    again = ("--force", "--rl.steps", "1", "--rl.rollouts", "32", "--data.held_out", "0.2", *options, "--from", "rl")
    moved = chatsmith("train", "--run-dir", "moved", *again, small=False)
    assert moved.returncode == 0, moved.stderr
    assert "label: finished before" in moved.stdout
    assert read(tmp_path / "moved")["summary"]["gold_sft"] == summary["gold_sft"]


REWARD = "def shouts(samples):\n    return [s.answer.count('!') - 0.1 * len(s.answer) for s in samples]\n"


def small(model, data, reward, **changes):
    keys = {
        "stages": ["rl"],
        "actor_model": str(model),
        "data.sources": [f"rl:{data}"],
        "data.held_out": 0.2,
        "data.max_tokens": 96,
        "rl.rewards": [f"{reward}:shouts"],
        "rl.rollouts": 8,
        "rl.minibatches": 2,
        "rl.epochs": 2,
        "rl.steps": 1,
        "rl.max_new_tokens": 8,
        "engine.device": "cpu",
    }
    return resolve([("test", nested(keys | changes))])


@pytest.mark.parametrize("family", FAMILIES)
def test_one_ppo_step_is_finite_and_deterministic_for_every_family(family, model_directory, pairs, tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)
    weights = []
    for name in ("one", "two"):
        train(small(model_directory(family), pairs, reward), tmp_path / name, recipe="test", force=True)
        (step,) = metrics(tmp_path / name, "rl")
        assert all(value is not None for value in step.values())
        assert step["rl/grad_norm_actor"] > 0
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name / "rl" / "actor").state_dict())
    before = AutoModelForCausalLM.from_pretrained(model_directory(family)).state_dict()
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=0, rtol=0)
    assert any(not torch.equal(value, before[key]) for key, value in weights[0].items() if key in before)


def test_a_ready_reward_skips_stage_2_and_the_manifest_says_so(chatsmith, model_directory, pairs, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    result = chatsmith(
        *("train", "--actor-model", model_directory("llama"), "--data", pairs, "--reward", "reward.py:shouts"),
        *("--run-dir", "run", "--force"),
    )
    assert result.returncode == 0, result.stderr
    entry = read(tmp_path / "run")["stages"]["reward"]
    assert entry["status"] == "skipped"
    assert "reward.py:shouts" in entry["verdict"]
    assert metrics(tmp_path / "run", "rl")[0]["reward/shouts"] is not None


def test_single_stages_chain_through_their_directories(chatsmith, model_directory, pairs, tmp_path):
    base = model_directory("gpt2")
    steps = [
        ("sft", "--actor-model", base, "--data", f"sft:{pairs}", "--run-dir", "a"),
        (
            "reward",
            "--actor-model",
            "a/sft/model",
            "--reward-model",
            base,
            "--data",
            f"reward:{pairs}",
            "--run-dir",
            "b",
        ),
        *[
            (
                "rl",
                "--actor-model",
                "a/sft/model",
                "--reward",
                "b/reward/model",
                "--data",
                f"rl:{pairs}",
                "--run-dir",
                "c",
            )
        ],
    ]
    for arguments in steps:
        result = chatsmith(*arguments, "--force")
        assert result.returncode == 0, result.stderr
    assert list(read(tmp_path / "c")["stages"]) == ["rl"]


def test_a_reward_model_may_have_another_tokenizer(chatsmith, model_directory, pairs, tmp_path):
    from tiny import byte_tokenizer, tiny_model

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["cat", "dog"])
    tiny_model("opt").save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    result = chatsmith(
        *("train", "--actor-model", model_directory("llama"), "--reward-model", "opt", "--data", pairs),
        *("--run-dir", "run", "--force"),
    )
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path / "run", "rl")[0]["rl/explained_variance"] <= 0.5  # the critic started at zero
