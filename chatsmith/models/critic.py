"""The critic: a decoder body under one linear unit that values the state before each token."""

import copy
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chatsmith.files.writing import FreshDirectory


class Critic(nn.Module):
    """`backbone` is a Hugging Face decoder without its head; `head` reads what would enter that head.

    `origin` says in words what it was made from.
    """

    def __init__(self, backbone: Any, width: int, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self.backbone = backbone
        self.head = nn.Linear(width, 1, device=backbone.device, dtype=torch.float32)

    def value(self, hidden: Tensor) -> Tensor:
        """Values [...] in fp32 from hidden states [..., d]."""
        values: Tensor = self.head(hidden.float())[..., 0]
        return values

    def save(self, directory: FreshDirectory) -> None:
        """The body as a Hugging Face directory, the head beside it as `value_head.safetensors`."""
        self.backbone.save_pretrained(directory)
        tensors = {"weight": self.head.weight.detach(), "bias": self.head.bias.detach()}
        save_file(tensors, directory / "value_head.safetensors")


def critic_from_reward_model(reward_model: Any, *, mean: float, std: float, weight: float = 1.0) -> Critic:
    """A critic that starts as what the reward model gives to a complete answer: weight * (score - mean) / std.

    Args:
        weight: of the reward model among the rewards. The others are taken for 0, which is the mean over the SFT
            model's answers of every standardised one.
    """
    head = reward_model.score.weight
    origin = "the reward model" if weight == 1 else f"the reward model, times its weight {weight:g}"
    critic = Critic(copy.deepcopy(reward_model.base_model), head.shape[1], origin)
    with torch.no_grad():
        critic.head.weight.copy_(weight * (head / std))
        critic.head.bias.fill_(weight * (-mean / std))
    return critic.eval()


def critic_from_actor(actor: Any) -> Critic:
    """A critic on the actor's own body that starts at value 0; for rewards with another tokenizer or none."""
    critic = Critic(copy.deepcopy(actor.base_model), actor.get_output_embeddings().in_features, "the SFT model")
    nn.init.zeros_(critic.head.weight)
    nn.init.zeros_(critic.head.bias)
    return critic.eval()
