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

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
from leave_one_out import leave_one_out  # noqa: E402


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, False], [False, True, True], [True, True, False], [False, True, True]])
    # returns 1, 4 | 2, 0: each minus the other of its prompt
    expected = torch.tensor([[0.0, -3, 0], [0, 3, 3], [2, 2, 0], [0, -2, -2]])
    torch.testing.assert_close(leave_one_out(samples=2)(rewards, torch.zeros(4, 3), mask), expected)
    assert not torch.allclose(leave_one_out(samples=4)(rewards, torch.zeros(4, 3), mask), expected)


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
    config = chatsmith.Config(rl={"rollouts": 8, "max_new_tokens": 8, "minibatches": 1, "epochs": 1})
    made = {}
    for name, estimator in {
        "default": None,
        "the same": lambda rewards, values, mask: gae(rewards, values, mask, gamma=1.0, lam=0.95),
        "own": leave_one_out(samples=2),
    }.items():
        policy = chatsmith.load(model_directory("llama"), device="cpu")
        ppo = chatsmith.PPO(policy, [chatsmith.Reward("vowels", vowels, 1.0)], config, steps=1, advantages=estimator)
        made[name], _ = ppo.make_experience(["red", "red", "blue", "blue"] * 2)
    torch.testing.assert_close(made["default"].advantages, made["the same"].advantages)
    assert not torch.allclose(made["default"].advantages, made["own"].advantages)
    torch.testing.assert_close(made["default"].returns, made["own"].returns)


def test_a_question_that_leaves_no_room_is_named(model_directory):
    policy = chatsmith.load(model_directory("llama"), device="cpu")
    ppo = chatsmith.PPO(policy, [chatsmith.Reward("vowels", vowels, 1.0)], chatsmith.Config(), steps=1)
    with pytest.raises(DataError, match="leaves no room"):
        ppo.make_experience(["word " * 5000])
