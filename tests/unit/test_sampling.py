"""The sampler draws from the distribution it claims to draw from."""

import numpy
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatsmith.engine.sampling import Draws, _restricted, sample
from chatsmith.engine.scheduler import Running, Sampling
from chatsmith.seeds import derive_seed, permutation, uniforms


def draws(samplings, vocabulary, prompt=(), answer=()):
    rows = [Running(0, i, tuple(prompt), 99, frozenset(), s, i, answer=[*answer]) for i, s in enumerate(samplings)]
    return Draws.of(rows, vocabulary, torch.device("cpu"))


def draw(logits, uniform, prompt=(), answer=(), **options):
    """One token per uniform from the same logits [1, V]."""
    settings = draws([Sampling(**options)], logits.shape[1], prompt, answer)
    parts = [
        sample(logits.expand(len(part), -1), part, settings) for part in uniform.split(max(1, 2**22 // logits.shape[1]))
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


LOGITS = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))


def test_inverse_cdf_by_hand():
    uniform = torch.tensor([0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999])
    tokens, _, _ = draw(LOGITS, uniform)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def fits(tokens, expected):
    """The p-value of Pearson's chi-square test that tokens [N] are drawn from `expected` [V]; 0 if they cannot be."""
    observed = torch.bincount(tokens, minlength=len(expected)).double()
    expected = torch.as_tensor(expected, dtype=torch.float64) * len(tokens)
    used = expected > 0
    if observed[~used].any():
        return 0.0
    statistic = (((observed - expected) ** 2)[used] / expected[used]).sum()
    return torch.special.gammaincc((used.sum() - 1) / 2, statistic / 2).item()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        # p ** (1 / 0.5), renormalised: 0.16, 0.09, 0.04, 0.01 over 0.30
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        # 0.4, 0.3 hold 0.7 < 0.75, so the third belongs to the smallest set that holds it
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        # logits are negative: p ** 2 for tokens 0 and 3, so 0.16, 0.3, 0.2, 0.01 over 0.67
        ({"repetition_penalty": 2.0, "prompt": [3], "answer": [0, 3]}, [16 / 67, 30 / 67, 20 / 67, 1 / 67]),
    ],
)
def test_frequencies_follow_the_distribution(options, expected):
    tokens, logprobs, sampled = draw(LOGITS, uniforms(7, 200_000), **options)
    assert fits(tokens, expected) > 1e-6
    assert fits(tokens[tokens < 2], [0.5, 0.5, 0, 0]) < 1e-6  # the test can fail
    torch.testing.assert_close(sampled.exp(), torch.tensor(expected)[tokens])
    if not options.keys() & {"temperature"}:
        torch.testing.assert_close(logprobs.exp(), torch.tensor([0.4, 0.3, 0.2, 0.1])[tokens])


def transformers_probs(logits, prompt=(), *, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """Its processors in the order in which `generate` applies them."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty)])
    processors.append(TemperatureLogitsWarper(temperature))
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return torch.softmax(processors(torch.tensor([prompt], dtype=torch.long), logits.clone()), -1)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.5},
        {"top_k": 7},
        {"top_p": 0.8},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_every_way_to_draw_is_that_of_transformers(options):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    prompt = [*range(0, 50, 3), 0, 3, 3]
    tokens, logprobs, sampled = draw(logits, uniforms(5, 200_000), prompt[:9], prompt[9:], **options)
    expected = transformers_probs(logits, prompt, **options)
    assert fits(tokens, expected) > 1e-6
    for name in options:  # a setting that is not heeded would be noticed
        assert (
            fits(tokens, transformers_probs(logits, prompt, **{k: v for k, v in options.items() if k != name})) < 1e-6
        )
    torch.testing.assert_close(sampled, expected.log()[tokens])
    policy = torch.log_softmax(logits[0] / options.get("temperature", 1.0), -1)
    torch.testing.assert_close(logprobs, policy[tokens])


def test_top_p_before_temperature_would_be_noticed():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    tokens, _, _ = draw(logits, uniforms(5, 200_000), temperature=0.5, top_p=0.8)
    swapped = torch.softmax(transformers_probs(logits, top_p=0.8).log() / 0.5, -1)
    assert fits(tokens, swapped) < 1e-6


def test_a_large_vocabulary_is_drawn_from_as_exactly_as_a_small_one():
    logits = 2 * torch.randn(1, 50_272, generator=torch.Generator().manual_seed(1))
    tokens, logprobs, _ = draw(logits, uniforms(11, 8000))
    exact = torch.log_softmax(logits[0].double(), -1)
    torch.testing.assert_close(logprobs.double(), exact[tokens], atol=5e-6, rtol=0)
    entropy = -(exact.exp() * exact).sum()
    error = logprobs.std() / len(logprobs) ** 0.5
    assert abs(logprobs.mean() + entropy) < 4 * error
    assert abs(logprobs.mean() - exact.mean()) > 40 * error  # the test can fail: uniform draws have this mean
    slices = torch.arange(50_272) * 100 // 50_272  # of about 500 tokens
    probs = torch.zeros(100, dtype=torch.float64).index_add(0, slices, exact.exp())
    assert fits(slices[tokens], probs) > 1e-6
    assert fits(slices[tokens], probs.roll(1)) < 1e-6
    # one more fp32 rounding per entry than fp64 has: 2^-24, and what softmax's own sum is off by
    cdf = torch.softmax(logits, -1).cumsum(-1)
    assert (cdf.double() - exact.exp().cumsum(-1)).abs().max() < 5e-7


def test_a_row_that_nothing_restricts_is_drawn_alike_beside_rows_that_are_restricted():
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(2)).expand(400, -1) * 4
    uniform = uniforms(3, 400)
    alone = sample(logits, uniform, draws([Sampling()] * 400, 300))
    other = [Sampling(), Sampling(0.0), Sampling(0.5, 3, 0.5, 2.0), Sampling(top_p=0.1)]
    mixed = sample(logits, uniform, draws(other * 100, 300, prompt=[5, 7]))
    for one, two in zip(alone, mixed, strict=True):
        torch.testing.assert_close(one[::4], two[::4], atol=2e-6, rtol=0)
    assert not torch.equal(alone[0][2::4], mixed[0][2::4])


def test_nothing_is_computed_for_what_no_row_asks():
    settings = draws([Sampling(), Sampling(top_k=0, top_p=1.0)], 300)
    asked = (settings.greedy, settings.temperature, settings.top_k, settings.top_p, settings.penalty, settings.seen)
    assert asked == (None,) * 6
    assert draws([Sampling(), Sampling(repetition_penalty=1.2)], 300, prompt=[4]).seen.nonzero().tolist() == [[1, 4]]


def test_greedy_takes_the_most_likely_token_with_its_logprob_at_temperature_1():
    tokens, logprobs, sampled = draw(LOGITS, torch.tensor([0.99]), temperature=0.0)
    assert tokens.item() == 0
    assert logprobs.exp().item() == pytest.approx(0.4)
    assert sampled.item() == 0.0


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    edges = torch.tensor([0.0, 0.5 - 1e-7, 0.5, 1 - 2**-24])
    tokens, _, _ = draw(logits, edges)
    assert set(tokens.tolist()) <= {1, 3}


def test_rows_of_one_batch_may_be_drawn_differently():
    tokens, _, _ = sample(
        LOGITS.expand(4, -1),
        torch.full((4,), 0.95),
        draws([Sampling(), Sampling(temperature=0.0), Sampling(top_k=2), Sampling(0.0, repetition_penalty=9)], 4, [0]),
    )
    assert tokens.tolist() == [3, 0, 1, 1]


def test_a_seed_depends_on_each_of_its_parts():
    seeds = {derive_seed(*parts) for parts in [(1, 2, 3, 4), (1, 2, 4, 3), (12, 3, 4), (1, 23, 4), (1, 2, 34)]}
    assert len(seeds) == 5
    assert derive_seed(1, 2, 3, 4) == derive_seed(1, 2, 3, 4)


def test_seeds_beyond_32_bits_are_told_apart():
    # torch's CPU generator would give the same numbers: it takes the low 32 bits only
    torch.testing.assert_close(uniforms(5, 4), uniforms(5, 4))
    assert not torch.equal(uniforms(5, 4), uniforms(5 + 2**32, 4))
    same = [torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32)]
    assert torch.equal(*same)


def test_a_uniform_is_never_zero_which_would_draw_the_first_token_however_unlikely(monkeypatch):
    class Zeros:
        def random(self, count, dtype):
            return numpy.zeros(count, dtype)

    monkeypatch.setattr(numpy.random, "default_rng", lambda seed: Zeros())
    uniform = uniforms(1, 3)
    assert (uniform > 0).all()
    tokens, _, _ = draw(torch.tensor([[-30.0, 0.0]]), uniform)
    assert tokens.tolist() == [1, 1, 1]
    assert draw(torch.tensor([[-30.0, 0.0]]), torch.zeros(1))[0].item() == 0


def test_a_date_is_a_good_seed():
    assert sorted(permutation(9, 20240101, 3)) == list(range(9))
    assert permutation(9, 20240101, 3).tolist() != permutation(9, 20240101, 4).tolist()


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-46, 1e-38, 1e-30, 1e-20, 1e-12])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature):
    logits = 10 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).double().float()
    logits[1] = -logits[0]
    logits[2, 7] = float("-inf")
    settings = draws([Sampling(temperature), Sampling(), Sampling(temperature, 3, 0.9), Sampling(temperature)], 50)
    tokens, logprobs, sampled = sample(logits, torch.full((4,), 0.7), settings)
    cold = torch.tensor([0, 2, 3])
    assert tokens[cold].tolist() == logits[cold].argmax(-1).tolist()
    assert logprobs.isfinite().all() and sampled.isfinite().all()
    assert sampled[cold].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("top_p", [0.5, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-8, 1 - 1e-10])
def test_a_nucleus_is_exact_to_the_end_of_a_long_tail(top_p):
    vocabulary = 150_000
    logits = 3 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(4))
    restricted = _restricted(logits, draws([Sampling(top_p=top_p)], vocabulary))
    kept = restricted.isfinite().sum().item()
    probs = torch.softmax(logits.double(), -1)[0].sort(descending=True).values
    after = probs.flip(0).cumsum(0).flip(0)
    exact = (after > 1 - top_p).sum().item()
    assert kept == pytest.approx(exact, rel=1e-4, abs=1)
    assert restricted.argmax() == logits.argmax()


def test_a_nucleus_of_nearly_nothing_is_the_most_likely_token():
    tokens, _, _ = draw(LOGITS, uniforms(3, 1000), top_p=1e-30)
    assert set(tokens.tolist()) == {0}
