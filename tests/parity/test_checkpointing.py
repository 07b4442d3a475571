"""Layers that are computed again in the backward pass have the gradients of those that are not."""

import copy

import pytest
import torch
from tiny import FAMILIES, byte_tokenizer, tiny_model

from chatsmith.assistant import Assistant
from chatsmith.config import Config
from chatsmith.data.chat import prepare_tokenizer
from chatsmith.errors import ConfigError
from chatsmith.models.checkpointing import checkpoint_activations
from chatsmith.models.passes import Pass
from chatsmith.models.reward import Reward
from chatsmith.models.scoring import token_logprobs
from chatsmith.models.way import way_of
from chatsmith.stages.policy import PolicyTrainer

torch.manual_seed(0)
ROWS = [torch.randint(3, 300, (n,)).tolist() for n in (16, 9, 12, 16, 5)]


def gradient(model):
    """Of the log-probs of a batch, by a weight's name."""
    part = Pass.of(ROWS)
    mask = part.real & (torch.arange(part.width) > 2)
    model.zero_grad()
    logprobs, _ = token_logprobs(model, part, mask, temperature=1.0, max_logits_bytes=1 << 30)
    (logprobs * torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-3)) for name in one)


def calls_of(model):
    """How often the first layer's attention or first part is computed, counted from here on."""
    seen = []
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    next(layer.children()).register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_and_layers_are_computed_twice(family):
    plain, model = tiny_model(family), tiny_model(family)
    expected = gradient(plain)
    way_of(model)
    checkpoint_activations(model)
    seen = calls_of(model)
    assert difference(gradient(model), expected) < 1e-5
    assert len(seen) == 2
    with torch.no_grad():
        model(input_ids=torch.tensor([ROWS[0]]))
    assert len(seen) == 3, "without gradients nothing is computed again"


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_pass_that_computes_layers_outside_of_the_forward_call_knows_the_rows(reentrant):
    """With transformers' own checkpointing too, the older kind of which runs the whole layer anew, mask and all."""
    model = tiny_model("llama")
    expected = gradient(model)
    assert way_of(model).rows == "packed"
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.train()
    assert difference(gradient(model), expected) < 1e-5


def test_a_copy_computes_with_its_own_weights():
    model = tiny_model("llama")
    checkpoint_activations(model)
    checkpoint_activations(model)  # a second stage asks for it again
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert difference(gradient(other), gradient(model)) > 1e-2
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"
    assert model.state_dict().keys() == tiny_model("llama").state_dict().keys()


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ConfigError, match="has no layers that can be computed again"):
        checkpoint_activations(torch.nn.Linear(2, 2))


def test_a_step_of_the_policy_is_the_same():
    metrics = []
    for checkpointing in (False, True):
        tokenizer = byte_tokenizer()
        prepare_tokenizer(tokenizer, "test")
        policy = Assistant(tiny_model(), tokenizer, (2,), max_tokens=64)
        rl = {"rollouts": 8, "samples_per_prompt": 4, "max_new_tokens": 8, "minibatches": 2}
        config = Config(rl=rl, engine={"activation_checkpointing": checkpointing})
        reward = Reward("vowels", lambda samples: [float(sum(c in "aeiou" for c in s.answer)) for s in samples], 1.0)
        trainer = PolicyTrainer(policy, [reward], config, steps=1)
        experience, _ = trainer.make_experience(["a", "b"])
        metrics.append(trainer.update(experience))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-6)
