"""The invariants of stage 3, on a tiny real model."""

import dataclasses
from functools import partial

import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from chatsmith.algo.losses import language_model_loss
from chatsmith.assistant import Assistant
from chatsmith.config import Config, EngineConfig, RlConfig
from chatsmith.data.chat import Encoded, encode_texts, prepare_tokenizer
from chatsmith.engine.engine import Engine, Sampling
from chatsmith.errors import DataError, TrainingStopped
from chatsmith.models.critic import critic_from_actor
from chatsmith.models.passes import Pass
from chatsmith.models.reward import Reward
from chatsmith.models.scoring import token_logprobs
from chatsmith.models.way import way_of
from chatsmith.seeds import derive_seed, permutation
from chatsmith.stages.loop import Guard
from chatsmith.stages.policy import PolicyTrainer, actor_loss
from chatsmith.stages.rollout import encode_questions, roll_out
from chatsmith.stages.sft import language_model_backward
from chatsmith.stages.watch import check_logprob_gap, describe
from chatsmith.types import Message, Record

STOPS = (2,)


def vowels(samples):
    return [float(sum(c in "aeiou" for c in sample.answer)) for sample in samples]


def config(**rl) -> Config:
    small = {"rollouts": 8, "epochs": 1, "minibatches": 1, "max_new_tokens": 10, "kl_coef": 0.1, "warmup": 0.0}
    return Config(rl=RlConfig(**(small | rl)))


class World:
    """Actor, reference, critic and one batch of rollouts with its scores."""

    def __init__(self, settings: Config, family: str = "llama", reward=vowels, ptx=()) -> None:
        self.config = settings
        self.tokenizer = byte_tokenizer()
        prepare_tokenizer(self.tokenizer, "test")
        self.actor, self.reference = tiny_model(family), tiny_model(family)
        self.critic = critic_from_actor(self.actor)
        with torch.no_grad():
            self.critic.head.weight.normal_(generator=torch.Generator().manual_seed(3))
        records = [Record(prompt=(Message("user", "x" * (i % 5 + 1)),)) for i in range(8)]
        prompts = encode_questions(self.tokenizer, records, stops=STOPS, max_tokens=64)
        engine = Engine(self.actor, max_batch=8)
        policy = Assistant(self.actor, self.tokenizer, STOPS, max_tokens=64)
        self.trainer = PolicyTrainer(
            policy,
            [Reward("test", reward, 1.0)],
            settings,
            steps=9,
            critic=self.critic,
            reference=self.reference,
            ptx=ptx,
        )
        self.rollouts = roll_out(
            engine,
            self.tokenizer,
            prompts,
            range(8),
            Sampling(temperature=settings.rl.temperature),
            limit=settings.rl.max_new_tokens,
            stops=STOPS,
            samples=1,
            seed=(0,),
        )
        self.scores, self.metrics = self.trainer.score(self.rollouts)
        self.experience = self.trainer.estimate(self.rollouts, self.scores)

    def update(self):
        return self.trainer.update(self.experience)


def part(world):
    """All rows of the rollouts in one pass."""
    return Pass.of(world.rollouts.sequences)


def loss_of(world, experience, *, kl_coef):
    counts = {"count": experience.mask.sum(), "answers": experience.mask.any(1).sum()}
    return actor_loss(world.actor, part(world), experience, world.config, **counts, kl_coef=kl_coef)


@pytest.mark.parametrize("source", ["rollout", "training"])
def test_on_the_first_update_the_ratio_is_one_and_nothing_is_clipped(source):
    world = World(config(old_logprobs=source))
    metrics = world.update()
    limit = 1e-6 if source == "training" else 2e-5  # rollout: another kernel order, one fp32 rounding per layer
    assert abs(metrics["rl/ratio_max"] - 1) <= limit
    assert metrics["rl/clip_fraction"] == 0
    assert metrics["rl/kl_old"] <= 1e-6
    after = loss_of(world, world.experience, kl_coef=0.1)[1]
    assert abs(after["rl/ratio_max"] - 1) > 1e-5  # the update did move the policy


def test_at_step_zero_the_kl_to_the_reference_is_zero():
    world = World(config())
    metrics = describe(world.rollouts, world.scores, world.experience)
    assert abs(metrics["rl/kl"]) <= 1e-6
    assert abs(metrics["rl/kl_sequence"]) <= 1e-4
    with torch.no_grad():
        world.reference.lm_head.weight.mul_(0.5)
    other, _ = world.trainer.score(world.rollouts)
    assert describe(world.rollouts, other, world.experience)["rl/kl"] > 1e-3


def test_the_gap_between_rollout_and_training_is_measured_and_tiny():
    world = World(config(old_logprobs="training"))
    assert 0 < world.metrics["rollout/logprob_gap_mean"] < 1e-5
    from_rollout = World(config(old_logprobs="rollout")).update()
    assert 0 < from_rollout["rollout/logprob_gap_mean"] < 1e-5
    assert "update/logprob_gap_mean" not in from_rollout


def test_an_update_does_not_write_over_the_gap_of_its_rollout():
    world = World(config(old_logprobs="training"))
    gap = world.metrics["rollout/logprob_gap_mean"]
    metrics = dict(world.metrics)
    metrics |= world.update()  # as in a loop of one's own
    assert metrics["rollout/logprob_gap_mean"] == gap
    assert metrics["update/logprob_gap_mean"] <= metrics["update/logprob_gap_max"] < 1e-5


def test_a_gap_above_the_limit_stops_the_run():
    for gap, noise, dtype, settings in (
        (9e-5, 1e-6, torch.float32, {}),
        (2e-4, 1e-4, torch.float32, {}),
        (5.1e-2, 4e-2, torch.bfloat16, {}),
        (9e-3, 0.0, torch.bfloat16, {}),
        (0.4, 1e-2, torch.bfloat16, {"max_logprob_gap": 0.5}),
    ):
        check_logprob_gap(gap, noise, dtype, RlConfig(**settings))
    for gap, noise, dtype in (
        (2e-4, 1e-6, torch.float32),
        (4e-4, 1e-4, torch.float32),
        (0.13, 4e-2, torch.bfloat16),
        (float("nan"), 1.0, torch.float32),
    ):
        with pytest.raises(TrainingStopped, match="do not compute the same function"):
            check_logprob_gap(gap, noise, dtype, RlConfig())


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def collect(world: World, **changes) -> dict:
    """Gradient of the actor loss over one mini-batch, cut into micro-batches as the configuration says."""
    engine = world.config.engine.model_copy(update=changes)
    world.trainer.config = world.config.model_copy(update={"engine": engine})
    learners = world.trainer.learners
    world.trainer.learners = dataclasses.replace(learners, guard=Refusing("rl", print))
    world.update()
    result = gradients(world.actor) | {f"critic.{n}": g for n, g in gradients(world.critic).items()}
    learners.actor.clear()
    learners.critic.clear()
    return result


class Refusing(Guard):
    """Collects gradients and never steps."""

    def step(self, trainables, batch):
        return None


def test_micro_batches_of_one_row_give_the_gradient_of_the_whole_mini_batch():
    world = World(config())
    whole, rows = collect(world, max_batch_tokens=100_000), collect(world, max_batch_tokens=1)
    assert whole.keys() == rows.keys()
    scale = max(g.abs().max() for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, rows[name], atol=1e-6 * scale.item() + 1e-7, rtol=1e-4)
    few = dataclasses.replace(world.experience, mask=world.experience.mask & (torch.arange(8) < 4)[:, None])
    world.experience = few
    half = collect(world, max_batch_tokens=100_000)
    assert any(not torch.allclose(half[name], gradient, rtol=1e-3) for name, gradient in whole.items())


def test_an_excluded_sample_changes_nothing_whatever_it_holds():
    world = World(config())
    valid = torch.tensor([True] * 6 + [False] * 2)
    scores = dataclasses.replace(world.scores, valid=valid)
    spoiled = dataclasses.replace(scores, rewards=torch.where(valid, scores.rewards, torch.tensor(1e9)))
    one, two = world.trainer.estimate(world.rollouts, scores), world.trainer.estimate(world.rollouts, spoiled)
    assert not one.mask[6:].any()
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(two, name))
    kept = world.trainer.estimate(world.rollouts, world.scores)
    assert not torch.allclose(kept.advantages[:6], one.advantages[:6])


def test_everything_in_an_experience_is_zero_outside_the_mask():
    experience = World(config()).experience
    for name in ("logprobs", "values", "advantages", "returns"):
        assert (getattr(experience, name)[~experience.mask] == 0).all(), name


def test_returns_come_from_unwhitened_advantages():
    world = World(config(returns_lam=1.0))
    experience, scores = world.experience, world.scores
    kl = scores.logprobs - scores.reference_logprobs
    for row in range(8):
        steps = experience.mask[row].nonzero()[:, 0]
        expected = scores.rewards[row] - 0.1 * kl[row, steps].sum()
        torch.testing.assert_close(experience.returns[row, steps[0]], expected, atol=1e-4, rtol=1e-4)


def test_a_shifted_and_scaled_reward_head_changes_neither_values_nor_returns():
    """rlhf.md: shift the raw head by 7, scale it by 10: the critic starts equally well."""
    from tiny import tiny_reward_model

    from chatsmith.models.critic import critic_from_reward_model
    from chatsmith.models.scoring import token_values

    world = World(config())
    plain = critic_from_reward_model(tiny_reward_model(), mean=0.3, std=0.8)
    scaled_model = tiny_reward_model()
    with torch.no_grad():
        scaled_model.score.weight.mul_(10)
    scaled = critic_from_reward_model(scaled_model, mean=10 * 0.3 + 7, std=8.0)
    with torch.no_grad():
        one = token_values(plain, part(world), world.rollouts.mask)
        two = token_values(scaled, part(world), world.rollouts.mask) + 7 / 8  # the head itself has no bias
    torch.testing.assert_close(one, torch.where(world.rollouts.mask, two, 0.0), atol=1e-5, rtol=1e-4)


def test_mixed_training_adds_c_times_the_language_model_gradient():
    texts = encode_texts(World(config()).tokenizer, ["good text", "another good text"], max_tokens=64)
    world = World(config())
    ppo = collect(world)
    language_model_backward(world.trainer.learners.actor, world.actor, texts, world.config)
    lm = gradients(world.actor)
    mixed = collect(World(config(ptx_coef=0.7), ptx=texts))
    for name, gradient in mixed.items():
        if name.startswith("critic."):
            continue
        expected = ppo[name] + 0.7 * lm[name]
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert any(g.norm() > 1e-3 for g in lm.values())


def test_the_language_model_loss_counts_targets_over_all_micro_batches():
    world = World(config())
    rows = [Encoded([5] * n, [False] + [True] * (n - 1)) for n in (3, 9, 27)]
    one_each = world.config.model_copy(
        update={"engine": world.config.engine.model_copy(update={"max_batch_tokens": 1})}
    )
    for settings in (world.config, one_each):
        loss = language_model_backward(world.trainer.learners.actor, world.actor, rows, settings)
        world.trainer.learners.actor.clear()
        mask = torch.arange(27)[None] > 0
        logprobs, _ = token_logprobs(world.actor, Pass.of([[5] * 27]), mask, temperature=1.0, max_logits_bytes=1 << 30)
        sums = [language_model_loss(logprobs[:, :n], mask[:, :n], count=torch.tensor(1.0)) for n in (3, 9, 27)]
        assert loss == pytest.approx(sum(sums).item() / (2 + 8 + 26), rel=1e-5)


def test_a_frozen_policy_stays_and_its_critic_learns():
    world = World(config(critic_warmup=1))
    before = [p.detach().clone() for p in world.actor.parameters()]
    metrics = world.update()
    for old, new in zip(before, world.actor.parameters(), strict=True):
        torch.testing.assert_close(old, new.detach(), atol=0, rtol=0)
    assert "rl/policy_loss" not in metrics
    assert metrics["rl/grad_norm_critic"] > 0


def test_epochs_end_early_when_the_policy_has_moved_too_far():
    fast = {"lr": 0.01, "epochs": 4, "minibatches": 2}
    assert World(config(**fast, max_kl_old=1e9)).update()["rl/epochs"] == 4
    assert World(config(**fast, max_kl_old=1e-6)).update()["rl/epochs"] < 4


def test_kl_in_the_loss_pulls_the_policy_back_to_the_reference():
    settings = config(kl_in="loss", kl_coef=1.0)
    world = World(settings)
    with torch.no_grad():
        world.actor.lm_head.weight.add_(0.05 * torch.randn(world.actor.lm_head.weight.shape))
    flat = dataclasses.replace(world.experience, advantages=torch.zeros_like(world.experience.advantages))
    loss, _ = loss_of(world, flat, kl_coef=1.0)
    loss.backward()
    difference = loss_of(world, flat, kl_coef=0.0)[0]
    assert loss > difference
    assert world.actor.lm_head.weight.grad.norm() > 0


def assistant(**rl):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    policy = Assistant(tiny_model(), tokenizer, STOPS, max_tokens=64)
    return PolicyTrainer(policy, [Reward("test", vowels, 1.0)], config(**rl), steps=4)


def test_every_step_draws_other_answers_and_every_prompt_gets_its_samples():
    trainer = assistant(samples_per_prompt=4, rollouts=8)
    first, _ = trainer.make_experience(["a", "b"])
    again, _ = trainer.make_experience(["a", "b"])
    assert first.sequences == again.sequences
    trainer.update(first)
    second, _ = trainer.make_experience(["a", "b"])
    assert first.sequences != second.sequences
    assert len(first.sequences) == 8
    prompts = [row[: first.mask[i].nonzero()[0, 0]] for i, row in enumerate(first.sequences)]
    assert prompts[0] == prompts[3] != prompts[4] == prompts[7]
    assert len({tuple(row) for row in first.sequences[:4]}) > 1


def test_a_frozen_policy_stays_out_of_everything_until_its_warm_up_is_over():
    trainer = assistant(critic_warmup=1, ptx_coef=0.0, old_logprobs="rollout")
    before = {
        name: weight.clone() for name, weight in trainer.learners.ema.state_dict().items() if hasattr(weight, "clone")
    }
    experience, metrics = trainer.make_experience(["a", "b", "c"])
    assert "rollout/logprob_gap_mean" in metrics  # from the training forward, as `update` does not run it
    trainer.update(experience)
    after = {name: weight for name, weight in trainer.learners.ema.state_dict().items() if hasattr(weight, "clone")}
    assert all(torch.equal(before[name], after[name]) for name in before)
    experience, metrics = trainer.make_experience(["a", "b", "c"])
    assert "rollout/logprob_gap_mean" not in metrics
    assert "rl/policy_loss" in trainer.update(experience)


@pytest.mark.parametrize("rows", [7, 9, 10])
def test_rows_that_mini_batches_do_not_divide_make_as_many_steps_of_nearly_the_same_size(rows, monkeypatch):
    trainer = assistant(minibatches=4, rollouts=8)
    sizes = []
    once = trainer._update_once
    monkeypatch.setattr(
        trainer, "_update_once", lambda batch, *rest: sizes.append(len(batch.sequences)) or once(batch, *rest)
    )
    experience, _ = trainer.make_experience([f"question {i}" for i in range(rows)])
    trainer.update(experience)
    assert len(sizes) == 4
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


def mini_batches(trainer, questions, monkeypatch):
    """The experience that is made, and the mini-batches of an update on it."""
    seen = []
    monkeypatch.setattr(trainer, "_update_once", lambda batch, *_: seen.append(batch) or {})
    experience, _ = trainer.make_experience(questions)
    trainer.update(experience)
    return experience, seen


def test_a_mini_batch_holds_all_answers_to_its_prompts(monkeypatch):
    trainer = assistant(samples_per_prompt=4, rollouts=24, minibatches=3, epochs=2)
    experience, seen = mini_batches(trainer, [f"question {i}" for i in range(6)], monkeypatch)
    assert list(experience.prompts) == [row // 4 for row in range(24)]
    assert len(seen) == 6
    visited = [list(batch.prompts) for batch in seen]
    for prompts in visited:
        assert len(prompts) == 8
        assert all(prompts.count(prompt) == 4 for prompt in prompts)
    assert sorted(visited[0] + visited[1] + visited[2]) == list(experience.prompts)
    assert visited[:3] != visited[3:]


def test_single_answers_are_visited_in_the_order_of_the_permutation(monkeypatch):
    trainer = assistant(rollouts=8, minibatches=2)
    experience, seen = mini_batches(trainer, [f"question {i}" for i in range(8)], monkeypatch)
    order = permutation(8, derive_seed(trainer.config.seed, 0), 0)
    expected = [experience.sequences[row] for row in order]
    assert [row for batch in seen for row in batch.sequences] == expected


def count_tokens(seen, _module, inputs, _output):
    seen += inputs[0].numel()


def test_answers_to_one_prompt_compute_it_once_and_give_the_same_update():
    questions = ["a rather long question", "another rather long question"]
    results = []
    for tokens in (10_000, 1):  # all rows together; one row per forward pass, nothing shared
        trainer = assistant(samples_per_prompt=4, rollouts=8)
        trainer.config = trainer.config.model_copy(update={"engine": EngineConfig(max_batch_tokens=tokens)})
        experience, _ = trainer.make_experience(questions)
        assert way_of(trainer.actor).rows == "packed"  # its trial is not to be counted
        seen = torch.zeros(1)
        trainer.actor.get_input_embeddings().register_forward_hook(partial(count_tokens, seen))
        metrics = trainer.update(experience)
        results.append((metrics["rl/grad_norm_actor"], metrics["rl/grad_norm_critic"]))
        prefixes = {tuple(row[: n + 1]) for row in experience.sequences for n in range(len(row))}
        in_rows = sum(map(len, experience.sequences))
        assert seen == (in_rows if tokens == 1 else len(prefixes))
        assert len(prefixes) < 0.6 * in_rows
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_an_own_loop_is_told_what_it_lacks():
    with pytest.raises(DataError, match="no text for mixed training"):
        assistant(ptx_coef=0.5)
    for questions in ([], "one question"):
        with pytest.raises(DataError, match="a list of questions"):
            assistant().make_experience(questions)


def test_the_adaptive_coefficient_moves_within_an_update():
    trainer = assistant(kl_target=0.1, kl_horizon=8)
    experience, _ = trainer.make_experience(["a", "b", "c", "d"])
    assert trainer.update(experience)["rl/kl_coef"] == 0.1
    assert trainer.kl_coef < 0.1  # the first KL is 0, below the target
    assert assistant().kl_coef == 0.1
