"""A loop of one's own from the public pieces, as the documents show it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_reward_model

import chatsmith
from chatsmith.algo.advantages import gae
from chatsmith.errors import DataError
from chatsmith.models.reward import critic_for

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
from leave_one_out import leave_one_out  # noqa: E402


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, False], [False, True, True], [True, True, False], [False, True, True]])
    # returns 1, 4 | 2, 0: each minus the other of its prompt
    expected = torch.tensor([[0.0, -3, 0], [0, 3, 3], [2, 2, 0], [0, -2, -2]])
    torch.testing.assert_close(leave_one_out(rewards, mask, torch.tensor([5, 5, 3, 3]), None), expected)
    assert not torch.allclose(leave_one_out(rewards, mask, torch.tensor([5, 5, 5, 5]), None), expected)


def test_the_example_of_an_own_loop_runs_and_saves_an_assistant(model_directory, pairs, tmp_path):
    scorer = tiny_reward_model("llama")
    scorer.config.score_mean, scorer.config.score_std = 0.0, 1.0
    scorer.save_pretrained(tmp_path / "reward")
    byte_tokenizer().save_pretrained(tmp_path / "reward")
    arguments = [model_directory("llama"), tmp_path / "reward", pairs, tmp_path / "mine"]
    result = subprocess.run(
        [sys.executable, EXAMPLES / "own_loop.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reward") == 20
    assert isinstance(chatsmith.load(tmp_path / "mine").chat("red cat", max_new_tokens=4), str)


def vowels(samples):
    return [float(sum(c in "aeiou" for c in sample.answer)) for sample in samples]


def test_an_own_estimator_replaces_gae_and_nothing_else(model_directory):
    settings = {"rollouts": 8, "samples_per_prompt": 2, "max_new_tokens": 8, "minibatches": 1, "epochs": 1}
    config = chatsmith.Config(rl=settings)
    made, metrics = {}, {}
    for name, estimator in {
        "default": None,
        "the same": lambda rewards, mask, _, values: gae(rewards, values, mask, gamma=1.0, lam=0.95),
        "own": leave_one_out,
    }.items():
        policy = chatsmith.load(model_directory("llama"), device="cpu")
        rewards = [chatsmith.Reward("vowels", vowels, 1.0)]
        critic = None if name == "own" else critic_for(policy.model, policy.tokenizer, rewards, max_tokens=64)
        trainer = chatsmith.PolicyTrainer(policy, rewards, config, steps=1, estimator=estimator, critic=critic)
        made[name], _ = trainer.make_experience(["red", "blue"] * 2)
        metrics[name] = trainer.update(made[name])
    torch.testing.assert_close(made["default"].advantages, made["the same"].advantages)
    torch.testing.assert_close(made["default"].returns, made["the same"].returns)
    assert metrics["default"] == metrics["the same"]
    assert not torch.allclose(made["default"].advantages, made["own"].advantages)


def test_an_estimator_that_needs_no_critic_has_none(model_directory):
    config = chatsmith.Config(rl={"rollouts": 8, "samples_per_prompt": 4, "max_new_tokens": 8, "minibatches": 1})
    policy = chatsmith.load(model_directory("llama"), device="cpu")
    rewards = [chatsmith.Reward("vowels", vowels, 1.0)]
    trainer = chatsmith.PolicyTrainer(policy, rewards, config, steps=2, estimator=leave_one_out)
    before = trainer.state_dict()
    assert set(before["learners"]) == {"actor", "ema", "guard"}
    experience, metrics = trainer.make_experience(["red", "blue"])
    assert experience.values is None
    assert "rl/explained_variance" not in metrics
    metrics = trainer.update(experience)
    assert metrics["rl/grad_norm_actor"] > 0
    assert not {"rl/value_loss", "rl/grad_norm_critic"} & set(metrics)


def test_a_question_that_leaves_no_room_is_named(model_directory):
    policy = chatsmith.load(model_directory("llama"), device="cpu")
    trainer = chatsmith.PolicyTrainer(policy, [chatsmith.Reward("vowels", vowels, 1.0)], chatsmith.Config(), steps=1)
    with pytest.raises(DataError, match="leaves no room"):
        trainer.make_experience(["word " * 5000])
