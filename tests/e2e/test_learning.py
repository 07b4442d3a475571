"""Every algorithm learns, the average follows, and mixed training keeps the language model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatsmith.config import PRESETS, Config
from chatsmith.data.chat import encode_texts
from chatsmith.models.load import load_actor, load_tokenizer
from chatsmith.pipeline import train
from chatsmith.resolve import nested, resolve
from chatsmith.stages.sft import evaluate_language_model
from chatsmith.stages.table import TITLES

REWARD = "def vowels(samples):\n    return [sum(c in 'aeiou' for c in s.answer) / 4 for s in samples]\n"
TEXTS = [f"the {a} {b} the {c}" for a in ("cat", "dog", "fox") for b in ("saw", "met") for c in ("sun", "sea", "ice")]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory, model_directory):
    """A tiny model that has learned a few texts, so that there is something to forget."""
    folder = tmp_path_factory.mktemp("speaker")
    rows = [{"prompt": f"say {i}", "answer": TEXTS[i % len(TEXTS)]} for i in range(200)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    keys = {
        "stages": ["sft"],
        "actor_model": str(model_directory("llama")),
        "data.sources": [f"sft:{folder / 'sft.jsonl'}"],
        "data.held_out": 0.1,
        "sft.lr": 3e-3,
        "sft.batch": 16,
        "sft.epochs": 6,
        "rl.max_new_tokens": 16,
        "engine.device": "cpu",
    }
    train(resolve([("test", nested(keys))]), folder / "sft", recipe="test", force=True)
    return folder


def trained(speaker, directory, **changes):
    keys = {
        "stages": ["rl"],
        "actor_model": str(speaker / "sft" / "sft" / "model"),
        "data.sources": [f"rl:{speaker / 'sft.jsonl'}", f"ptx:{speaker / 'texts.txt'}"],
        "data.held_out": 0.3,
        "rl.rewards": [f"{speaker / 'reward.py'}:vowels"],
        "rl.rollouts": 64,
        "rl.minibatches": 2,
        "rl.epochs": 4,
        "rl.steps": 12,
        "rl.max_new_tokens": 16,
        "rl.lr": 1e-3,
        "rl.critic_lr": 3e-3,  # ignored without a critic
        "rl.max_kl_old": 0.1,
        "engine.device": "cpu",
    }
    config = resolve([("test", nested(keys | changes))])
    train(config, directory, recipe="test", force=True)
    return json.loads((directory / "manifest.json").read_text())["summary"]


def weights(path):
    parameters = AutoModelForCausalLM.from_pretrained(path).state_dict()
    return torch.cat([parameters[name].flatten() for name in sorted(parameters)])


def language_loss(path):
    tokenizer = load_tokenizer(str(path))
    model = load_actor(str(path), tokenizer, dtype=torch.float32, device=torch.device("cpu"))
    return evaluate_language_model(model, encode_texts(tokenizer, TEXTS, max_tokens=64), Config())


def test_ppo_with_four_epochs_raises_the_reward_and_the_average_follows_the_actor(speaker, tmp_path):
    summary = trained(speaker, tmp_path / "run")
    assert summary["reward_gain_ci95"][0] > 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "rl" / "metrics.jsonl").open()]
    assert max(step["rl/epochs"] for step in steps) == 4
    sft = weights(speaker / "sft" / "sft" / "model")
    actor, ema = (weights(tmp_path / "run" / "rl" / name) for name in ("actor", "ema"))
    assert (ema - actor).norm() < (ema - sft).norm()
    assert (ema - actor).norm() > 0
    nothing = trained(speaker, tmp_path / "still", **{"rl.lr": 1e-12})
    assert nothing["reward_gain_ci95"][0] <= 0  # without a step there is no gain


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.sweep) for seed in (2, 3))])
def test_mixed_training_keeps_the_language_model_at_nearly_the_same_reward(seed, speaker, tmp_path):
    without = trained(speaker, tmp_path / "without", seed=seed)
    mixed = trained(speaker, tmp_path / "mixed", seed=seed, **{"rl.ptx_coef": 0.1})
    assert language_loss(tmp_path / "mixed" / "rl" / "actor") < language_loss(tmp_path / "without" / "rl" / "actor")
    assert mixed["reward_mean_last"] > 0.9 * without["reward_mean_last"]


IN_CI = ("rloo", "gspo", "dapo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.sweep) for name in PRESETS if name != "ppo"]
)
def test_every_algorithm_without_a_critic_raises_a_held_out_reward_and_says_its_name(name, speaker, tmp_path):
    run = tmp_path / "run"
    changes = {"rl.algorithm": name, "rl.steps": 8}
    if name == "dapo":
        changes["rl.samples_per_prompt"] = 2  # of which some groups are equal
    summary = trained(speaker, run, **changes)
    assert summary["reward_gain_ci95"][0] > 0
    steps = [json.loads(line) for line in (run / "rl" / "metrics.jsonl").open()]
    assert not {"rl/explained_variance", "rl/value_loss", "rl/grad_norm_critic"} & set(steps[0])
    assert ("rl/equal_groups" in steps[0]) == (name != "reinforce++")
    if name == "dapo":
        assert max(step["rl/refills"] for step in steps) > 0
        assert all(step["rl/answers"] <= 64 for step in steps)
    assert not (run / "rl" / "critic").exists()
    manifest = json.loads((run / "manifest.json").read_text())
    settings = manifest["config"]["rl"]
    assert {key: settings[key] for key in PRESETS[name] if f"rl.{key}" not in changes} == {
        key: value for key, value in PRESETS[name].items() if f"rl.{key}" not in changes
    }
    assert manifest["stages"]["rl"]["report"]["explained_variance"] is None
    sample = json.loads((run / "rl" / "samples.jsonl").read_text().splitlines()[0])
    assert all(value is None for _, _, value in sample["tokens"])
    page = (run / "report.html").read_text()
    said = page.replace('"ppo"', "").replace("REINFORCE++-baseline", "REINFORCE++")
    assert TITLES[name].replace("-baseline", "") in said
    assert "PPO" not in said
    card = (run / "rl" / "actor" / "README.md").read_text()
    assert f"# Assistant after {TITLES[name]}" in card
    assert f'"{name}"' in card
