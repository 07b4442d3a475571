"""A real pretrained model: the engine says what transformers says, and draws what transformers draws."""

import pytest
import torch
from tiny import STORIES, require
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatsmith.engine.engine import Engine, Request, Sampling

STOPS = (1, 2)
SAMPLES, LENGTH = 1000, 16


@pytest.fixture(scope="module")
def stories():
    model = AutoModelForCausalLM.from_pretrained(require(STORIES), dtype=torch.float32).eval()
    prompt = AutoTokenizer.from_pretrained(STORIES)("Once upon a time").input_ids
    return model, tuple(prompt)


def generated(model, prompt, **options):
    """What transformers says after a prompt, [samples, T], padded with 0 behind an end."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        eos_token_id=list(STOPS),
        pad_token_id=0,
        **options,
    )
    return output[:, len(prompt) :]


def test_200_greedy_tokens_equal_generate(stories):
    model, prompt = stories
    (greedy,), (cold,) = Engine(model, max_batch=2).generate(
        [Request(prompt, 200, STOPS, Sampling(temperature), (0,)) for temperature in (0.0, 0.5)]
    )
    assert greedy.tokens == generated(model, prompt, max_new_tokens=200, do_sample=False)[0].tolist()
    assert len(greedy.tokens) == 200
    assert cold.tokens != greedy.tokens


@torch.no_grad()
def likelihoods(model, prompt, answers):
    """log p(answer | prompt) of right-padded answers [N, T] under the model, one plain forward pass."""
    tokens = torch.cat((torch.tensor([prompt]).expand(len(answers), -1), answers), 1)
    logprobs = torch.log_softmax(model(tokens).logits[:, len(prompt) - 1 : -1], -1)
    ended = torch.isin(answers, torch.tensor(STOPS)).int()
    counts = ended.cumsum(-1) - ended == 0  # up to the end, that included
    return (logprobs.gather(2, answers[:, :, None])[:, :, 0] * counts).sum(-1)


def drawn(model, prompt, sampling):
    (group,) = Engine(model, max_batch=250).generate([Request(prompt, LENGTH, STOPS, sampling, tuple(range(SAMPLES)))])
    answers = torch.tensor([c.tokens + [0] * (LENGTH - len(c.tokens)) for c in group])
    return answers, torch.tensor([sum(c.logprobs) for c in group])


def standard_errors(ours, theirs):
    """The difference of two means in units of its standard error (Welch); a normal number if they are equal."""
    return (ours.mean() - theirs.mean()) / (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()


def test_1000_sampled_continuations_are_as_likely_as_those_that_transformers_samples(stories):
    model, prompt = stories
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    theirs = likelihoods(
        model, prompt, generated(model, prompt, max_new_tokens=LENGTH, num_return_sequences=SAMPLES, **options)
    )
    answers, own = drawn(model, prompt, Sampling())
    ours = likelihoods(model, prompt, answers)
    torch.testing.assert_close(own, ours, atol=2e-4, rtol=0)
    assert abs(standard_errors(ours, theirs)) < 4  # by chance once in 16,000 changes of the seeds
    colder, _ = drawn(model, prompt, Sampling(temperature=0.9))
    assert abs(standard_errors(likelihoods(model, prompt, colder), theirs)) > 6  # the test can fail
