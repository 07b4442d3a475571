"""Scoring against the plain forward pass of transformers, for every supported family."""

import pytest
import torch
import transformers
from tiny import FAMILIES, tiny_model, tiny_reward_model

from chatsmith.models.critic import critic_from_actor, critic_from_reward_model
from chatsmith.models.passes import Pass
from chatsmith.models.scoring import _ChunkedLogprobs, sequence_scores, token_logprobs, token_values
from chatsmith.models.way import Way, note

LARGE = 1 << 30
torch.manual_seed(0)
ROWS = [torch.randint(3, 300, (n,)).tolist() for n in (9, 21, 14)]


def answer_mask(part, prompt=4):
    return part.real & (torch.arange(part.width)[None] >= prompt)


def plain_logprobs(model, row, temperature):
    """log p(token t | tokens before t) from the model's own logits, for one unpadded row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, -1)
    return torch.tensor([0.0] + [logprobs[t - 1, row[t]].item() for t in range(1, len(row))])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_logprobs_equal_the_plain_forward_one_by_one(family, temperature):
    model = tiny_model(family)
    part = Pass.of(ROWS)
    mask = answer_mask(part)
    logprobs, _ = token_logprobs(model, part, mask, temperature=temperature, max_logits_bytes=LARGE)
    for index, row in enumerate(ROWS):
        expected = plain_logprobs(model, row, temperature)
        scored = mask[index, : len(row)]
        torch.testing.assert_close(logprobs[index, : len(row)][scored], expected[scored], atol=2e-5, rtol=1e-5)
    assert (logprobs[~mask] == 0).all()


def test_logprobs_shifted_by_one_would_be_noticed():
    model = tiny_model("llama")
    part = Pass.of(ROWS)
    mask = answer_mask(part)
    logprobs, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=LARGE)
    expected = plain_logprobs(model, ROWS[1], 1.0)
    assert not torch.allclose(logprobs[1, 4:20], expected[5:21], atol=1e-2)


def test_entropy_is_that_of_the_distribution_the_token_was_drawn_from():
    model = tiny_model("llama")
    part = Pass.of(ROWS)
    mask = answer_mask(part)
    _, entropies = token_logprobs(model, part, mask, temperature=0.7, max_logits_bytes=LARGE)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ROWS[0]])).logits[0] / 0.7
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies[0, 4:9], expected[3:8], atol=1e-5, rtol=1e-5)


SMALL = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {  # what stands behind the last states of a body, and the setting that leaves it out
    "plain": ("Llama", {}, {}),
    "bias": ("Llama", {}, {}),
    "cohere": ("Cohere", {"logit_scale": 0.3}, {"logit_scale": 1.0}),
    "granite": ("Granite", {"logits_scaling": 4.0}, {"logits_scaling": 1.0}),
    "gemma 2": ("Gemma2", {"final_logit_softcapping": 5.0}, {"final_logit_softcapping": None}),
    "gemma 4": ("Gemma4Text", {"final_logit_softcapping": 5.0}, {"final_logit_softcapping": None}),
    "a layer more": ("ModernBertDecoder", {"decoder_bias": True}, None),
}


def model_with_head(head, *, left_out=False):
    name, settings, other = HEADS[head]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | settings | (other if left_out and other else {}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))  # biases, too
    if head == "bias" and not left_out:
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 384))
    if other is None and left_out:
        model.lm_head = torch.nn.Identity()
    return model


def logprobs_and_gradients(head, temperature, dtype, budget, **options):
    model = model_with_head(head, **options).to(dtype)
    part = Pass.of(ROWS)
    mask = answer_mask(part)
    logprobs, entropies = token_logprobs(model, part, mask, temperature=temperature, max_logits_bytes=budget)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))
    (weights * logprobs).sum().backward()
    return logprobs.detach(), entropies, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", HEADS)
def test_logprobs_and_gradients_are_those_of_the_whole_model(head):
    model = model_with_head(head)
    ours = logprobs_and_gradients(head, 1.0, torch.float32, 4 * 384 * 3)
    weights = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1))
    mask = answer_mask(Pass.of(ROWS))
    for index, row in enumerate(ROWS):
        logprobs = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        plain = logprobs[:-1].gather(1, torch.tensor(row)[1:, None])[:, 0]
        scored = mask[index, 1 : len(row)]
        torch.testing.assert_close(ours[0][index, 1 : len(row)][scored], plain.detach()[scored], atol=1e-5, rtol=1e-5)
        (weights[index, 1 : len(row)] * plain)[scored].sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (ours[2][name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_chunked_head_gives_the_same_values_and_gradients(head, temperature, dtype, limit):
    whole = logprobs_and_gradients(head, temperature, dtype, LARGE)
    chunked = logprobs_and_gradients(head, temperature, dtype, 4 * 384 * 3)  # three tokens at a time
    for a, b in zip(whole[:2], chunked[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)  # from the same logits, in fp32
    assert whole[2].keys() == chunked[2].keys()
    for name, gradient in whole[2].items():
        assert (gradient - chunked[2][name]).norm() < limit * gradient.norm(), name
    if head != "plain":
        plain = logprobs_and_gradients(head, temperature, dtype, LARGE, left_out=True)
        assert not torch.allclose(plain[0], chunked[0], atol=1e-2)  # what leaving it out would give


def test_a_chunked_head_that_is_frozen_passes_the_gradient_on():
    gradients = []
    for budget in (LARGE, 4 * 384 * 3):
        model = tiny_model("llama")
        model.lm_head.requires_grad_(False)
        part = Pass.of(ROWS)
        mask = answer_mask(part)
        logprobs, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=budget)
        logprobs.sum().backward()
        assert model.lm_head.weight.grad is None
        gradients.append(model.base_model.embed_tokens.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_logprobs_of_chunks_have_the_derivative_that_differences_measure():
    torch.manual_seed(3)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    states, ids = torch.randn(7, 4, dtype=torch.float64, requires_grad=True), torch.randint(11, (7,))

    def logprobs(states, weight):
        return _ChunkedLogprobs.apply(lambda chunk: chunk @ weight.T / 0.7, 3, ids, states, weight)[0]

    # the weight's gradient is added up in fp32
    assert torch.autograd.gradcheck(logprobs, (states, weight), atol=1e-5, rtol=1e-5)


def test_the_end_of_sequence_token_gets_a_gradient():
    # one ancestor masked EOS out because its pad token was EOS: the policy was never taught to stop
    model = tiny_model("llama")
    row = [1, 30, 40, 50, 2]
    part = Pass.of([row, [*row, 60, 61]])
    mask = torch.zeros_like(part.real)
    mask[0, 4] = True  # the EOS alone
    logprobs, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=LARGE)
    logprobs.sum().backward()
    assert model.lm_head.weight.grad[2].norm() > 0
    masked_out = part.tokens != 2  # what inferring the mask from the token's value would do
    assert not (masked_out & mask).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_scores_equal_the_model_s_own_pooled_logits(family):
    model = tiny_reward_model(family)
    model.config.pad_token_id = 0
    part = Pass.of(ROWS)
    with torch.no_grad():
        expected = model(input_ids=part.tokens, attention_mask=(part.tokens != 0).long()).logits[:, 0]
        scores = sequence_scores(model, part)
        one_early = sequence_scores(model, Pass.of([row[:-1] for row in ROWS]))
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(one_early, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_made_from_a_reward_model_values_a_complete_answer_at_its_standardised_score(family):
    model = tiny_reward_model(family)
    with torch.no_grad():
        model.score.weight.mul_(10)
    critic = critic_from_reward_model(model, mean=7.0, std=2.5)
    part = Pass.of([[*row, 0] for row in ROWS])  # room for the state after the last token
    mask = torch.zeros_like(part.real)
    mask[torch.arange(3), part.lengths - 1] = True  # values of the state before this token, after the whole answer
    with torch.no_grad():
        values = token_values(critic, part, mask)[mask]
        scores = sequence_scores(model, Pass.of(ROWS))
    torch.testing.assert_close(values, (scores - 7.0) / 2.5, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_made_from_an_actor_starts_at_zero_and_fits_the_head_s_input(family):
    actor = tiny_model(family)
    critic = critic_from_actor(actor)
    part = Pass.of(ROWS)
    values = token_values(critic, part, answer_mask(part))
    assert values.abs().max() == 0
    assert critic.head.in_features == actor.get_output_embeddings().in_features
    values.sum().backward()
    assert critic.head.weight.grad.norm() > 0


@pytest.mark.parametrize("rows", ["packed", "padded", "alone"])
def test_scoring_ignores_what_stands_in_the_padding(rows):
    model = tiny_model("llama")
    note(model, Way(rows))
    part, noisy = Pass.of(ROWS), Pass.of(ROWS)
    noisy.tokens[~noisy.real] = 77
    mask = answer_mask(part)
    one, other = (
        token_logprobs(model, each, mask, temperature=1.0, max_logits_bytes=LARGE)[0] for each in (part, noisy)
    )
    torch.testing.assert_close(one, other, atol=0, rtol=0)
