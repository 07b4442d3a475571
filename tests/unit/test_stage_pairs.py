"""Stage `pairs` against plain forward passes of transformers, answer by answer."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from chatsmith.algo.losses import pairs_of
from chatsmith.assistant import Assistant
from chatsmith.config import Config, PairsConfig
from chatsmith.data.chat import prepare_tokenizer, try_encode
from chatsmith.data.mix import StageData
from chatsmith.errors import DataError
from chatsmith.runs.runtime import Interrupted, StageRun, StopSignals
from chatsmith.stages.loop import averaged
from chatsmith.stages.pairs import PairsTrainer, Preferences, check, implicit, logprobs_of, train_pairs
from chatsmith.stages.reward import encode_ranked, last_answer
from chatsmith.stages.rollout import encode_questions
from chatsmith.types import Answer, Message, Record

STOPS = (2,)
LOSSES = {
    "dpo": {},
    "dpo smoothed": {"loss": "dpo", "smoothing": 0.1},
    "dpo per token": {"loss": "dpo", "normalise": True},
    "dpo and likelihood": {"loss": "dpo", "nll": 0.3},
    "robust": {"loss": "robust", "smoothing": 0.2},
    "ipo": {"loss": "ipo"},
    "simpo": {"loss": "simpo", "margin": 0.5},
    "orpo": {"loss": "orpo", "beta": 0.4},
    "kto": {"loss": "kto", "good_weight": 1.5, "bad_weight": 0.5},
}


def record(number: int) -> Record:
    """A question with a good and a bad answer; every third has a third answer between them."""
    prompt = (Message("user", f"say {number}"),)
    answers = [Answer(f"yes {number}", 1.0), Answer("no" * (1 + number % 3), -1.0)]
    return Record(prompt=prompt, answers=(*answers, *([Answer("perhaps", 0.0)] if number % 3 == 0 else [])))


class World:
    def __init__(self, family: str = "llama", **settings) -> None:
        self.config = Config(pairs=PairsConfig(**({"lr": 1e-3, "batch": 6, "warmup": 0} | settings)))
        self.tokenizer = byte_tokenizer()
        prepare_tokenizer(self.tokenizer, "test")
        self.model = tiny_model(family, scale=1.0)
        self.policy = Assistant(self.model, self.tokenizer, STOPS, max_tokens=64)
        self.rows, self.dropped = encode_ranked(
            self.tokenizer, [record(i) for i in range(6)], stops=STOPS, max_tokens=64, least=1
        )
        reference = tiny_model(family, seed=1, scale=1.0)
        self.trainer = PairsTrainer(self.policy, self.config, steps=9, on_skip=pytest.fail, reference=reference)
        self.reference = logprobs_of(reference, self.rows, self.config, records=len(self.rows))
        self.preferences = Preferences(self.rows, self.reference, compared=self.config.pairs.loss != "kto")

    def batch(self):
        return [self.preferences[i] for i in range(6)]


def naive_logprob(model, row, start, length):
    """log p of an answer by a plain forward pass over its conversation alone."""
    logits = model(torch.tensor([row])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    return sum(logprobs[place - 1, row[place]] for place in range(start, start + length))


def naive_loss(world: World, model, batch) -> torch.Tensor:
    """Formulas written out with loops, in fp64."""
    settings, reference = world.config.pairs, world.trainer.reference
    sigmoid = torch.sigmoid
    policies = [[naive_logprob(model, *each) for each in zip(b.rows, b.starts, b.lengths, strict=True)] for b in batch]
    with torch.no_grad():
        references = [
            [naive_logprob(reference, *each) for each in zip(b.rows, b.starts, b.lengths, strict=True)] for b in batch
        ]
    beta = {"dpo": 2.0 if settings.normalise else 0.1, "simpo": 2.0}.get(settings.loss, 0.1)
    beta = settings.beta or beta
    if settings.loss == "kto":
        drifts = []
        for here, there in zip(batch, [*batch[1:], batch[0]], strict=True):
            answer = there.rows[0][there.starts[0] : there.starts[0] + there.lengths[0]]
            row = here.rows[0][: here.starts[0]] + answer
            with torch.no_grad():
                at = (row, here.starts[0], there.lengths[0])
                drifts.append(naive_logprob(model, *at) - naive_logprob(reference, *at))
        zero = max(0.0, float(sum(drifts) / len(drifts)))
        total = 0.0
        for b, (p,), (r,) in zip(batch, policies, references, strict=True):
            d = p - r
            if b.marks[0] > 0:
                total = total + settings.good_weight * (1 - sigmoid(beta * (d - zero)))
            else:
                total = total + settings.bad_weight * (1 - sigmoid(beta * (zero - d)))
        return total / len(batch)
    total, likelihood, tokens = 0.0, 0.0, 0.0
    for b, p, r in zip(batch, policies, references, strict=True):
        comparisons = [(i, j) for i in range(len(p)) for j in range(len(p)) if b.scores[i] > b.scores[j]]
        for i, j in comparisons:
            n, weight = b.lengths, 1 / len(comparisons)
            if settings.loss in ("dpo", "robust"):
                x = (p[i] - r[i]) / (n[i] if settings.normalise else 1)
                x = beta * (x - (p[j] - r[j]) / (n[j] if settings.normalise else 1))
                e = settings.smoothing
                if settings.loss == "dpo":
                    loss = -(1 - e) * sigmoid(x).log() - e * sigmoid(-x).log()
                else:
                    loss = (-(1 - e) * sigmoid(x).log() + e * sigmoid(-x).log()) / (1 - 2 * e)
            elif settings.loss == "ipo":
                loss = ((p[i] - r[i]) / n[i] - (p[j] - r[j]) / n[j] - 1 / (2 * beta)) ** 2
            elif settings.loss == "simpo":
                loss = -sigmoid(beta * (p[i] / n[i] - p[j] / n[j]) - settings.margin).log()
            else:
                odds = [q.exp() / (1 - q.exp()) for q in (p[i] / n[i], p[j] / n[j])]
                loss = -p[i] / n[i] - beta * sigmoid((odds[0] / odds[1]).log()).log()
            total = total + weight * loss
            likelihood, tokens = likelihood + weight * p[i], tokens + weight * n[i]
    return total / len(batch) - settings.nll * likelihood / tokens


def gradient_of(model):
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("name", "family"), [*((name, "llama") for name in LOSSES), ("dpo", "gpt2"), ("kto", "gpt2")])
def test_a_step_is_that_of_the_formula_written_out(name, family):
    world = World(family, **LOSSES[name])
    batch = world.batch()
    oracle = copy.deepcopy(world.model)
    expected = naive_loss(world, oracle, batch)
    expected.backward()
    metrics = world.trainer._collect(batch)
    assert metrics["pairs/loss"] == pytest.approx(expected.item(), rel=1e-5)
    found, right = gradient_of(world.model), gradient_of(oracle)
    assert torch.linalg.norm(found - right) < 1e-4 * torch.linalg.norm(right)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_same_however_the_batch_is_cut(name):
    gradients = []
    for budget in (8192, 40):
        world = World(**LOSSES[name])
        world.trainer.config = world.config.model_copy(
            update={"engine": world.config.engine.model_copy(update={"max_batch_tokens": budget})}
        )
        world.trainer._collect(world.batch())
        gradients.append(gradient_of(world.model))
    assert torch.linalg.norm(gradients[0] - gradients[1]) < 1e-5 * torch.linalg.norm(gradients[0])
    world = World(**LOSSES[name])
    world.trainer._collect(world.batch()[:5])  # another batch, another gradient
    assert torch.linalg.norm(gradients[0] - gradient_of(world.model)) > 1e-2 * torch.linalg.norm(gradients[0])


def test_log_probs_before_training_are_those_of_plain_forward_passes():
    world = World()
    for number, row in enumerate(world.rows.answers):
        start, length = int(world.rows.starts[number]), int(world.rows.lengths[number])
        expected = naive_logprob(world.trainer.reference, list(row), start, length).item()
        assert world.reference[number] == pytest.approx(expected, abs=1e-4)


def test_both_answers_of_a_pair_begin_at_their_first_token_and_hold_their_end():
    """Prompt and answer are not tokenised as one text, which would move the border."""
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    turns = (Message("user", "a"), Message("assistant", "first"), Message("user", "b"))
    for text in ("yes", " no"):
        (row,) = try_encode(tokenizer, [(*turns, Message("assistant", text))], stops=STOPS)
        span = last_answer(row.targets)
        said = [row.tokens[place] for place in span]
        assert said[-1] == STOPS[0]
        assert tokenizer.decode(said[:-1]).strip() == text.strip()
        assert sum(row.targets) > len(span)  # the earlier turn is a target of stage 1, and no part of the answer


@pytest.mark.parametrize(
    ("answers", "marks"),
    [
        ([Answer("a", 1.0, is_marked=True)], [1]),
        ([Answer("a", -1.0, is_marked=True)], [-1]),
        ([Answer("a", 1.0, is_marked=True), Answer("b", 1.0, is_marked=True)], [1, 1]),
        ([Answer("a", 7.0), Answer("b", 9.0), Answer("c", 8.0)], [-1, 1, 0]),
        ([Answer("a", 7.0), Answer("b", 7.0)], [0, 0]),
        ([Answer("a")], [0]),
    ],
)
def test_an_answer_is_what_it_was_marked_or_the_best_or_worst_of_its_prompt(answers, marks):
    rows, _ = encode_ranked(
        World().tokenizer,
        [Record(prompt=(Message("user", "x"),), answers=tuple(answers))],
        stops=STOPS,
        max_tokens=64,
        least=1,
    )
    assert rows.marks.tolist() == marks


class Silent:
    def __getattr__(self, name):
        return lambda *_, **__: None


@contextlib.contextmanager
def silent(total):
    yield Silent()


def stage(directory, stop=None, save_every_s=1e9):
    return StageRun(directory / "pairs", save_every_s=save_every_s, stop=stop or StopSignals(), show=silent)


def learn(world: World, directory, *, records, run=None, **rl):
    config = world.config.model_copy(update={"rl": world.config.rl.model_copy(update={"max_new_tokens": 8} | rl)})
    train, held_out = records[: -len(records) // 4], records[-len(records) // 4 :]
    prompts = encode_questions(world.tokenizer, held_out, stops=STOPS, max_tokens=56)
    return train_pairs(world.policy, train, held_out, prompts, (), config, run or stage(directory))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("dpo", "orpo") else pytest.mark.sweep) for n in LOSSES]
)
def test_every_loss_widens_the_held_out_margin(name, tmp_path):
    world = World(**LOSSES[name] | {"batch": 8, "epochs": 4, "lr": 3e-3})
    report, trainer = learn(world, tmp_path, records=[record(i) for i in range(80)])
    assert report.implicit.margin.low > 0
    assert report.implicit.accuracy.low > 0.5
    assert report.steps == (30 if world.config.pairs.loss != "kto" else 60)
    before = copy.deepcopy(world.model.state_dict())
    with averaged(world.policy, trainer.learner, trainer.ema):
        assert any(not torch.equal(before[name], weight) for name, weight in world.model.state_dict().items())
    assert all(torch.equal(before[name], weight) for name, weight in world.model.state_dict().items())


class StopAt:
    """A request to stop that arrives at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @property
    def received(self):
        self.left -= 1
        return 15 if self.left < 0 else None


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_an_interrupted_stage_goes_on_bit_for_bit(loss, tmp_path):
    records = [record(i) for i in range(80)]
    whole = World(loss=loss, batch=8)
    report, _ = learn(whole, tmp_path / "whole", records=records)
    parts = World(loss=loss, batch=8)
    with pytest.raises(Interrupted):
        learn(parts, tmp_path / "parts", records=records, run=stage(tmp_path / "parts", StopAt(6)))
    again = World(loss=loss, batch=8)
    resumed, _ = learn(again, tmp_path / "parts", records=records)
    assert resumed.implicit == report.implicit
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])


def test_what_is_of_no_use_is_refused_and_counted(tmp_path):
    marked = [
        Record(prompt=(Message("user", f"q {i}"),), answers=(Answer("a", 1.0 if i % 2 else -1.0, is_marked=True),))
        for i in range(80)
    ]
    with pytest.raises(DataError, match=r"no usable preference.*--pairs\.loss kto"):
        learn(World(), tmp_path, records=marked)
    ties = [
        Record(prompt=(Message("user", f"q {i}"),), answers=(Answer("a", 1.0), Answer("b", 1.0))) for i in range(80)
    ]
    with pytest.raises(DataError, match="two answers of different score"):
        learn(World(), tmp_path, records=ties)
    with pytest.raises(DataError, match="good or bad"):
        learn(World(loss="kto"), tmp_path, records=ties)
    report, _ = learn(World(batch=8), tmp_path, records=[*ties[:30], *(record(i) for i in range(80))])
    assert report.unpaired == 30


def test_marks_alone_are_measured_by_how_they_part(tmp_path):
    def marked(number):
        good = number % 2 == 0
        answer = Answer("yes" if good else "no", 1.0 if good else -1.0, is_marked=True)
        return Record(prompt=(Message("user", f"say {number}"),), answers=(answer,))

    world = World(loss="kto", batch=8, epochs=6, lr=3e-3)
    report, _ = learn(world, tmp_path, records=[marked(i) for i in range(120)])
    assert report.implicit.accuracy.low > 0.5
    assert report.implicit.chosen > report.implicit.rejected
    assert report.implicit.pairs == 30


def test_implicit_accuracy_of_three_records_by_hand():
    world = World()
    rows, _ = encode_ranked(world.tokenizer, [record(i) for i in (0, 1, 2)], stops=STOPS, max_tokens=64)
    # record 0: yes, no, perhaps; 1: yes, no; 2: yes, no
    gains = np.array([1.0, -1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    found = implicit(rows, gains, ["a", "b", "c"], per_token=False, compared=True)
    # pairs of 0: yes > no right, yes > perhaps wrong, perhaps > no right; 1: wrong; 2: right
    assert found.accuracy.value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found.margin.value == pytest.approx(((2 - 1 + 3) / 3 + -0.5 + 2) / 3)
    assert found.pairs == 5
    assert pairs_of([rows.scores[rows.answers_of(0)].tolist()]).better.tolist() == [0, 0, 2]
    first = implicit(rows, gains[:3], ["a"], per_token=False, compared=True)
    assert first.accuracy.value == pytest.approx(2 / 3)


def test_marks_count_although_some_records_are_pairs():
    rows, _ = encode_ranked(World().tokenizer, [record(1), record(2)], stops=STOPS, max_tokens=64, least=1)
    found = implicit(rows, np.array([3.0, 1.0, 2.0, 0.0]), ["a", "b"], per_token=False, compared=False)
    assert found.pairs == 4
    assert found.accuracy.value == 1.0
    assert found.margin.value == pytest.approx(2.0)


def marked(number: int, good: bool) -> Record:
    answer = Answer("yes" if good else "no", 1.0 if good else -1.0, is_marked=True)
    return Record(prompt=(Message("user", f"say {number}"),), answers=(answer,))


def data_of(train, held_out):
    return {"pairs": StageData(train, held_out)}


def test_what_the_loss_cannot_learn_from_is_refused_before_any_work():
    good, both = [marked(i, True) for i in range(9)], [marked(i, i % 2 == 0) for i in range(9)]
    kto = Config(pairs=PairsConfig(loss="kto"))
    with pytest.raises(DataError, match="to train on: KTO needs good answers and bad ones, and none is bad"):
        check(kto, data_of(good, both))
    with pytest.raises(DataError, match="to measure on: KTO needs good answers and bad ones, and none is bad"):
        check(kto, data_of(both, good))
    with pytest.raises(DataError, match=r"no record has two answers.*--pairs\.loss kto"):
        check(Config(), data_of(both, both))
    check(Config(), data_of([], []))  # a stage before makes them


def test_stages_are_written_in_the_order_in_which_they_run():
    with pytest.raises(ValueError, match="stages run in this order: pairs, rl"):
        Config(stages=("rl", "pairs"))
