"""Stage 3 without a critic, on a tiny real model: what is estimated, left out, asked again, and refused."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from test_rl import STOPS, loss_of, vowels
from test_rl import World as Critics
from tiny import byte_tokenizer, tiny_model

from chatsmith.algo.advantages import whiten
from chatsmith.assistant import Assistant
from chatsmith.config import PRESETS, Config, RlConfig
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.errors import ConfigError, RewardError, RunError
from chatsmith.models.critic import critic_from_actor
from chatsmith.models.reward import Reward
from chatsmith.stages.loop import Order
from chatsmith.stages.policy import PolicyTrainer
from chatsmith.stages.rl import _ask
from chatsmith.stages.rollout import encode_questions, judge_rollouts, together
from chatsmith.stages.watch import PhaseClock, describe
from chatsmith.types import Message, Record

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from leave_one_out import leave_one_out

QUESTIONS = [f"question {i}" for i in range(4)]


def trainer(reward=vowels, estimator=None, critic=None, **rl):
    """A trainer of 16 answers to four questions, unless told otherwise."""
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    policy = Assistant(tiny_model(), tokenizer, STOPS, max_tokens=64)
    small = {"rollouts": 16, "samples_per_prompt": 4, "epochs": 2, "minibatches": 2, "max_new_tokens": 10}
    settings = Config(rl=RlConfig(**(small | {"warmup": 0.0} | rl)))
    return PolicyTrainer(policy, [Reward("test", reward, 1.0)], settings, steps=4, estimator=estimator, critic=critic)


def moved(made: PolicyTrainer, experience) -> bool:
    before = [p.detach().clone() for p in made.actor.parameters()]
    made.update(experience)
    return any(not torch.equal(old, new) for old, new in zip(before, made.actor.parameters(), strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_every_algorithm_makes_an_experience_and_learns_from_it(name):
    made = trainer(algorithm=name, samples_per_prompt=4)
    experience, metrics = made.make_experience(QUESTIONS)
    assert (experience.values is None) == (experience.returns is None) == (name != "ppo")
    assert experience.advantages[experience.mask].isfinite().all()
    assert (experience.advantages[~experience.mask] == 0).all()
    assert ("rl/explained_variance" in metrics) == (name == "ppo")
    assert moved(made, experience)
    assert set(made.moving()) == ({"actor", "critic"} if name == "ppo" else {"actor"})


def test_rloo_is_the_estimator_of_the_example_to_rounding():
    ours, _ = trainer(algorithm="rloo").make_experience(QUESTIONS)
    example, _ = trainer(algorithm="rloo", estimator=leave_one_out).make_experience(QUESTIONS)
    torch.testing.assert_close(ours.advantages, example.advantages)
    white, _ = trainer(estimator=leave_one_out).make_experience(QUESTIONS)  # PPO's scale, as before
    torch.testing.assert_close(white.advantages, whiten(ours.advantages * 1.0, ours.mask, total=lambda x: x))
    group, _ = trainer(algorithm="rloo", baseline="group").make_experience(QUESTIONS)
    assert not torch.allclose(ours.advantages, group.advantages)


def test_the_price_of_kl_enters_before_the_baseline():
    """r - beta * sum of k1, then minus the others': the exact gradient. Per token afterwards is another estimate."""
    made = trainer(algorithm="rloo", kl_coef=0.5)
    with torch.no_grad():
        made.reference.lm_head.weight.mul_(0.9)
    rollouts = made.roll_out(prompts_of(made), range(4))
    scores, _ = made.score(rollouts)
    experience = made.estimate(rollouts, scores)
    kl = (scores.logprobs - scores.reference_logprobs) * rollouts.mask
    returns = (scores.rewards - 0.5 * kl.sum(1)).view(4, 4)
    expected = (returns - (returns.sum(1, keepdim=True) - returns) / 3).view(16, 1) * rollouts.mask
    torch.testing.assert_close(experience.advantages, expected, atol=1e-4, rtol=1e-4)
    assert kl.sum(1).abs().max() > 0.1


def prompts_of(made, questions=QUESTIONS):
    records = [Record(prompt=(Message("user", question),)) for question in questions]
    return encode_questions(made.tokenizer, records, stops=STOPS, max_tokens=50)


@pytest.mark.parametrize("aggregate", ["token", "answer", "constant"])
def test_the_kl_in_the_loss_is_a_mean_over_tokens_whatever_the_aggregate(aggregate):
    settings = {"rollouts": 8, "epochs": 1, "minibatches": 1, "max_new_tokens": 10, "kl_in": "loss"}
    world = Critics(Config(rl=RlConfig(**settings, aggregate=aggregate)))
    with torch.no_grad():
        world.actor.lm_head.weight.add_(0.05 * torch.randn(world.actor.lm_head.weight.shape))
        flat = dataclasses.replace(world.experience, advantages=torch.zeros_like(world.experience.advantages))
        kl = loss_of(world, flat, kl_coef=1.0)[0]
        mean = Critics(Config(rl=RlConfig(**settings)))
        mean.actor.load_state_dict(world.actor.state_dict())
        torch.testing.assert_close(kl, loss_of(mean, flat, kl_coef=1.0)[0])
    assert kl > 1e-3


def test_the_first_loss_of_grpo_is_zero_and_its_gradient_is_not():
    made = trainer(algorithm="grpo", kl_coef=0.0, epochs=1, minibatches=1)
    experience, _ = made.make_experience(QUESTIONS)
    metrics = made.update(experience)
    assert abs(metrics["rl/policy_loss"]) < 1e-5
    assert metrics["rl/grad_norm_actor"] > 1e-3


# Rewards that tell nothing apart


def by_question(samples):
    """Equal rewards within every group but that of question 0."""
    return [
        float(i) if sample.messages[0].content == "question 0" else float(sample.messages[0].content[-1])
        for i, sample in enumerate(samples)
    ]


def test_equal_groups_are_counted_and_left_out_only_if_asked_to():
    kept, metrics = trainer(by_question, algorithm="rloo", kl_coef=0.0).make_experience(QUESTIONS)
    assert metrics["rl/equal_groups"] == 0.75
    assert len(kept.sequences) == 16
    assert (kept.advantages[4:] == 0).all()
    made = trainer(by_question, algorithm="rloo", kl_coef=0.0, skip_equal_groups=True)
    left, same = made.make_experience(QUESTIONS)
    assert left.prompts == (0,) * 4
    assert left.mask.any(1).all()
    for name in ("rl/reward_mean", "rl/reward_std", "rl/equal_groups", "rl/kl", "rl/answer_length"):
        assert metrics[name] == same[name]  # of all answers, before the filter
    assert moved(made, left)


@pytest.mark.parametrize("name", PRESETS)
def test_rewards_that_are_all_missing_end_training(name):
    made = trainer(lambda samples: [None] * len(samples), algorithm=name, samples_per_prompt=4, max_excluded=1.0)
    with pytest.raises(RewardError, match="no finite number to 100%"):
        made.score(made.roll_out(prompts_of(made), range(4)))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_rewards_that_are_all_equal_move_nothing_and_are_no_nan(name, value):
    critic_free = name != "ppo"
    made = trainer(
        lambda samples: [value] * len(samples),
        algorithm=name,
        kl_coef=0.0,
        samples_per_prompt=4,
        max_excluded=1.0,
        **({"overlong": 0.0} if name == "dapo" else {}),
    )
    rollouts = made.roll_out(prompts_of(made), range(4))
    scores, metrics = made.score(rollouts)
    assert metrics["rl/excluded"] == 0.0
    experience = made.estimate(rollouts, scores)
    assert experience.advantages.isfinite().all()
    if critic_free and name != "reinforce++":  # without a baseline returns are what they are; whitened, they are 0
        assert (experience.advantages == 0).all()
        assert describe(rollouts, scores, experience)["rl/equal_groups"] == 1.0
    if critic_free:
        assert not moved(made, experience)


def test_one_answer_that_is_left_of_a_group_is_compared_with_nothing():
    def mostly_missing(samples):
        return [1.0 if i % 4 == 0 else None for i in range(len(samples))]

    made = trainer(mostly_missing, algorithm="rloo", kl_coef=0.0, max_excluded=1.0)
    rollouts = made.roll_out(prompts_of(made), range(4))
    scores, _ = made.score(rollouts)
    assert scores.valid.sum() == 4
    assert (made.estimate(rollouts, scores).advantages == 0).all()


# Further prompts in place of equal groups


def ask(made, count=20):
    """One step's answers to questions of which one in five tells its answers apart."""
    questions = [f"question {i % 5}" for i in range(count)]
    order = Order(count, seed=7)
    rollouts, raw, refills = _ask(made, prompts_of(made, questions), order, PhaseClock())
    return rollouts, raw, refills, order.drawn


def test_further_prompts_are_asked_until_enough_groups_differ_or_it_was_often_enough():
    filled = trainer(by_question, algorithm="rloo", kl_coef=0.0, skip_equal_groups=True, max_refills=50)
    rollouts, raw, refills, drawn = ask(filled)
    scores, _ = filled.score(rollouts, raw)
    experience = filled.estimate(rollouts, scores)
    assert len(experience.sequences) == 16
    assert 0 < refills < 50
    assert len(rollouts.sequences) == 4 * drawn > 16
    assert {sample.messages[0].content for sample in rollouts.samples} == {f"question {i}" for i in range(5)}
    assert len(set(experience.prompts)) == 4

    short = trainer(by_question, algorithm="rloo", kl_coef=0.0, skip_equal_groups=True, max_refills=1)
    rollouts, raw, refills, drawn = ask(short)
    assert refills == 1
    experience = short.estimate(rollouts, short.score(rollouts, raw)[0])
    assert 4 <= drawn <= 8
    assert len(experience.sequences) < 16

    plain = trainer(by_question, algorithm="rloo", kl_coef=0.0, skip_equal_groups=True)
    assert ask(plain)[2:] == (0, 4)


def test_a_prompt_that_is_asked_again_in_a_refill_gets_other_answers():
    made = trainer(algorithm="rloo")
    prompts = prompts_of(made)
    first, again = made.roll_out(prompts, [1]), made.roll_out(prompts, [1], refill=1)
    assert first.sequences != again.sequences
    assert first.sequences == made.roll_out(prompts, [1]).sequences


def test_rewards_are_asked_once_per_answer():
    seen = []

    def counted(samples):
        seen.extend(samples)
        return by_question(samples)

    made = trainer(counted, algorithm="rloo", kl_coef=0.0, skip_equal_groups=True, max_refills=2)
    rollouts, raw, _, _ = ask(made)
    made.score(rollouts, raw)
    assert len(seen) == len(rollouts.samples)


def test_rollouts_together_are_judged_as_each_part_is():
    made = trainer(algorithm="rloo")
    prompts = prompts_of(made, ["a", "a much longer question"])
    parts = [made.roll_out(prompts, [0]), made.roll_out(prompts, [1])]
    whole = together(parts)
    assert whole.prompts == (0, 0, 0, 0, 1, 1, 1, 1)
    assert whole.mask.shape == whole.logprobs.shape == (8, max(map(len, whole.sequences)))
    for rows, part in zip((slice(0, 4), slice(4, 8)), parts, strict=True):
        width = part.mask.shape[1]
        assert torch.equal(whole.mask[rows, :width], part.mask)
        assert torch.equal(whole.logprobs[rows, :width], part.logprobs)
        assert not whole.mask[rows, width:].any()
    settings = made.config.rl
    rewards = [judge_rollouts(part, made.rewards, settings)[0] for part in parts]
    torch.testing.assert_close(judge_rollouts(whole, made.rewards, settings)[0], torch.cat(rewards))


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 7, 3, 1], [12], [25]])
def test_an_order_gives_the_same_rows_in_whatever_pieces_and_from_anywhere(sizes):
    whole = Order(10, seed=3).take(25)
    order = Order(10, seed=3)
    drawn = [row for size in sizes for row in order.take(size)]
    assert drawn == whole[: sum(sizes)]
    assert Order(10, seed=3, drawn=order.drawn).take(5) == Order(10, seed=3).take(sum(sizes) + 5)[-5:]


# Length, and what is refused


def test_answers_near_the_limit_lose_reward_and_no_truncated_score_stands_in_its_place():
    made = trainer(algorithm="rloo", overlong=0.5)
    rollouts = made.roll_out(prompts_of(made), range(4))
    plain = judge_rollouts(rollouts, made.rewards, RlConfig(max_new_tokens=10))[0]
    shaped = judge_rollouts(rollouts, made.rewards, made.config.rl)[0]
    lengths = rollouts.mask.sum(1)
    assert (lengths == 10).any()
    torch.testing.assert_close(shaped - plain, -((lengths - 5).clamp(min=0) / 5.0))


def test_a_critic_that_nothing_uses_is_refused_and_so_is_a_state_with_one():
    made = trainer()
    with pytest.raises(ConfigError, match=r"a critic is given, and rl\.algorithm = 'rloo'"):
        trainer(algorithm="rloo", critic=critic_from_actor(made.actor))
    free = trainer(algorithm="rloo")
    with pytest.raises(RunError, match=r"it has a critic, and rl\.baseline asks for none"):
        free.load_state_dict(made.state_dict())
    with pytest.raises(RunError, match=r"it has no critic, and rl\.baseline asks for one"):
        made.load_state_dict(free.state_dict())
    free.load_state_dict(free.state_dict())


def test_a_warm_up_of_the_critic_freezes_no_policy_without_one():
    made = trainer(algorithm="rloo", critic_warmup=3)
    experience, _ = made.make_experience(QUESTIONS)
    assert moved(made, experience)
