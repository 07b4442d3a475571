"""What becomes of rewards: standardised, clipped, weighted, excluded, truncated."""

import math
import sys

import pytest
import torch
from tiny import byte_tokenizer, tiny_model, tiny_reward_model

from chatsmith.config import RlConfig
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.errors import ConfigError, ModelError, RewardError
from chatsmith.intake import parse_reward
from chatsmith.models.passes import Pass
from chatsmith.models.reward import Reward, RewardModel, critic_for, encode_samples, load_ready_reward
from chatsmith.models.scoring import token_values
from chatsmith.stages.reward import score_unit
from chatsmith.stages.rollout import judge, unit_of
from chatsmith.types import Message, Record, Sample

CPU = {"dtype": torch.float32, "device": torch.device("cpu"), "max_tokens_per_pass": 4096, "max_new_tokens": 8}


def samples(*answers, reasons=None):
    prompt = (Message("user", "Hi"),)
    reasons = reasons or ["stop"] * len(answers)
    return [Sample(prompt, a, r, Record(prompt=prompt)) for a, r in zip(answers, reasons, strict=True)]


def by_length(batch):
    return [float(len(sample.answer)) for sample in batch]


def reward_model(mean=0.0, std=1.0):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    return RewardModel(tiny_reward_model(), tokenizer, (2,), mean, std, 4096)


def test_functions_count_as_they_are_and_several_are_weighted_and_logged_by_themselves():
    rewards = [Reward("length", by_length, 2.0), Reward("ones", lambda batch: [1.0] * len(batch), -1.0)]
    values, valid, metrics = judge(samples("a", "abc"), rewards, RlConfig())
    assert values.tolist() == [1.0, 5.0]
    assert valid.tolist() == [True, True]
    assert metrics["reward/length"] == 2.0
    assert metrics["reward/ones"] == 1.0
    assert metrics["rl/score_raw_mean"] == 3.0


def test_a_reward_model_counts_in_standard_deviations_clipped():
    model = reward_model()
    batch = samples("a", "Hello there", "zz")
    raw = torch.tensor(model.scores(batch))
    reward = Reward("trained", model, 1.0, mean=raw[0].item(), std=1e-4)
    values, _, _ = judge(batch, [reward], RlConfig())
    expected = ((raw - raw[0]) / 1e-4).clamp(-5, 5)
    torch.testing.assert_close(values, expected)
    assert values.abs().max() == 5


def test_an_answer_that_hit_the_limit_gets_the_truncated_score_in_place_of_the_model_s():
    model = reward_model()
    batch = samples("abc", "abc", reasons=["stop", "length"])
    reward = Reward("trained", model, 1.0, mean=0.0, std=1.0)
    values, valid, _ = judge(batch, [reward], RlConfig())
    assert values[1].item() == -1.0 != values[0].item()
    assert valid.all()
    values, _, _ = judge(batch, [reward], RlConfig(truncated_score="none"))
    expected = model.scores(batch)
    assert values.tolist() == pytest.approx([min(5, max(-5, x)) for x in expected])
    assert expected[0] != expected[1]  # the cut-off answer is scored without an EOS it never sampled
    _, valid, _ = judge(batch, [reward], RlConfig(truncated_score="mask"))
    assert valid.tolist() == [True, False]


def test_functions_see_cut_off_answers_themselves():
    values, _, _ = judge(samples("abc", reasons=["length"]), [Reward("length", by_length, 1.0)], RlConfig())
    assert values.tolist() == [3.0]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_sample_without_a_finite_reward_is_excluded_and_counted(bad):
    function = lambda batch: [bad, *([1.0] * (len(batch) - 1))]  # noqa: E731
    values, valid, metrics = judge(samples(*["a"] * 40), [Reward("f", function, 1.0)], RlConfig())
    assert valid.tolist() == [False] + [True] * 39
    assert values.isfinite().all()
    assert metrics["rl/excluded"] == pytest.approx(1 / 40)
    with pytest.raises(RewardError, match="no finite number to 50%"):
        judge(samples("a", "b"), [Reward("f", function, 1.0)], RlConfig())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: 1 / 0, "raised ZeroDivisionError"),
        (lambda batch: sys.exit(), "raised SystemExit"),
        (lambda batch: [1.0], "1 values for 2 samples"),
        (lambda batch: 3.0, "returned float"),
        (lambda batch: ["good", "bad"], "no number"),
    ],
)
def test_a_broken_reward_function_is_named(function, message):
    with pytest.raises(RewardError, match=message):
        judge(samples("a", "b"), [Reward("mine", function, 1.0)], RlConfig())


def test_reward_specs_hold_a_weight():
    assert parse_reward("a/b.py:f@0.5") == ("a/b.py:f", 0.5)
    assert parse_reward("a/b") == ("a/b", 1.0)
    with pytest.raises(ConfigError, match="must be a number"):
        parse_reward("a@heavy")


def test_a_function_is_loaded_from_a_file_that_the_user_names(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def shout(samples):\n    return [s.answer.count('!') for s in samples]\n")
    reward = load_ready_reward(f"{file}:shout", 2.0, name=None, **CPU)
    values, _, _ = judge(samples("a!", "b!!"), [reward], RlConfig())
    assert (reward.name, values.tolist()) == ("shout", [2.0, 4.0])
    with pytest.raises(ConfigError, match="has no function 'whisper'"):
        load_ready_reward(f"{file}:whisper", 1.0, name=None, **CPU)
    with pytest.raises(ConfigError, match="no such file"):
        load_ready_reward(f"{tmp_path}/absent.py:f", 1.0, name=None, **CPU)
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        load_ready_reward(f"{file}:shout", 1.0, name=None, **CPU)
    file.write_text("import sys\n\nsys.exit()\n")
    with pytest.raises(ConfigError, match="cannot be imported: SystemExit"):
        load_ready_reward(f"{file}:shout", 1.0, name=None, **CPU)


@pytest.mark.parametrize("weight", [1.0, 0.1, -2.0])
def test_the_critic_starts_as_what_the_reward_model_adds_to_the_reward(weight):
    model = reward_model(mean=0.02, std=0.01)
    batch = samples("abc", "Hello", "zz")
    reward = Reward("trained", model, weight, model.mean, model.std)
    values, _, _ = judge(batch, [reward], RlConfig(score_clip=1e9))
    others = [Reward("ones", lambda batch: [1.0] * len(batch), 0.5), Reward("weaker", model, weight / 3, 5.0, 1.0)]
    critic = critic_for(tiny_model(), model.tokenizer, [*others, reward], max_tokens=64)
    started = []
    for sample in batch:
        (row,) = encode_samples(model.tokenizer, [sample], stops=model.stops)
        # the value of the state after the answer's last token stands at the token that would follow
        mask = torch.arange(len(row) + 1)[None] == len(row)
        started.append(token_values(critic, Pass.of([[*row, 0]]), mask)[0, -1].item())
    assert started == pytest.approx(values.tolist(), rel=1e-4, abs=1e-4)
    assert f"times its weight {weight:g}" in critic.origin or weight == 1


def test_the_unit_of_a_reward_is_said_in_words():
    model, raw = Reward("trained", by_length, 1.0, 0.0, 1.0), Reward("length", by_length, 1.0)
    assert unit_of([raw]) == ""
    assert unit_of([model]) == "in standard deviations of the reward over the SFT model's answers"
    assert unit_of([model, Reward("b", by_length, 0.5, 0.0, 1.0)]).startswith(
        "in standard deviations of each reward over"
    )
    assert unit_of([model, Reward("b", by_length, 0.5, 0.0, 1.0)]).endswith(", weighted")
    assert unit_of([model, raw]).endswith("of trained over the SFT model's answers, other rewards as they are")


def test_scores_have_a_unit_from_two_answers_on():
    model = reward_model()
    mean, std = score_unit(model, samples("abc", "Hello", "cut", reasons=["stop", "stop", "length"]))
    ended = model.scores(samples("abc", "Hello"))
    assert (mean, std) == pytest.approx((sum(ended) / 2, abs(ended[0] - ended[1]) / 2))
    assert score_unit(model, samples("abc", "Hello", reasons=["length", "stop"]))[1] > 0  # all where one ended
    assert score_unit(model, samples("abc", "abc"))[1] == 0
    for few in (samples("abc"), samples()):
        with pytest.raises(RewardError, match="two or more give its scores a unit"):
            score_unit(model, few)
    long = RewardModel(model.model, model.tokenizer, (2,), 0.0, 1.0, 4096)
    with pytest.raises(RewardError, match=r"to 0 of 2 answers"):
        score_unit(long, samples("x" * 400, "y" * 400))


def test_a_reward_model_whose_scores_never_differ_has_no_unit_and_is_told_so(tmp_path):
    scorer = tiny_reward_model()
    scorer.config.score_mean, scorer.config.score_std = 0.3, 0.0
    scorer.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the same score"):
        load_ready_reward(str(tmp_path), 1.0, name=None, **CPU)
