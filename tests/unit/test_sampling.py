"""The sampler draws from the distribution it claims to draw from."""

import pytest
import torch

from chatsmith.engine.sampling import sample
from chatsmith.seeds import derive_seed, permutation, uniforms


def draw(logits, uniform, temperature=1.0, top_k=0, top_p=1.0):
    rows = len(uniform)
    return sample(
        logits.expand(rows, -1),
        uniform,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
    )


LOGITS = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))


def test_inverse_cdf_by_hand():
    uniform = torch.tensor([0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999])
    tokens, _, _ = draw(LOGITS, uniform)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def chi_square(tokens, expected):
    observed = torch.bincount(tokens, minlength=len(expected)).double()
    expected = torch.tensor(expected, dtype=torch.float64) * len(tokens)
    used = expected > 0
    assert (observed[~used] == 0).all()
    return (((observed - expected) ** 2)[used] / expected[used]).sum().item(), int(used.sum()) - 1


# critical values of chi-square at 1e-6: 1 degree 23.93, 2 degrees 27.63, 3 degrees 30.66
CRITICAL = {1: 23.93, 2: 27.63, 3: 30.66}


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
    ],
)
def test_frequencies_follow_the_distribution(options, expected):
    uniform = uniforms(7, 200_000)
    tokens, logprobs, sampled = draw(LOGITS, uniform, **options)
    statistic, freedom = chi_square(tokens, expected)
    assert statistic < CRITICAL[freedom]
    flat, _ = chi_square(tokens[tokens < 2], [0.5, 0.5, 0, 0])
    assert flat > CRITICAL[1]  # the test can fail
    torch.testing.assert_close(sampled.exp(), torch.tensor(expected)[tokens])
    if not options.keys() & {"temperature"}:
        torch.testing.assert_close(logprobs.exp(), torch.tensor([0.4, 0.3, 0.2, 0.1])[tokens])


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
        LOGITS.expand(3, -1),
        torch.tensor([0.95, 0.95, 0.95]),
        torch.tensor([1.0, 0.0, 1.0]),
        torch.tensor([0, 0, 2]),
        torch.tensor([1.0, 1.0, 1.0]),
    )
    assert tokens.tolist() == [3, 0, 1]


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


def test_a_date_is_a_good_seed():
    assert sorted(permutation(9, 20240101, 3)) == list(range(9))
    assert permutation(9, 20240101, 3) != permutation(9, 20240101, 4)
