"""chatsmith: your own ChatGPT-style assistant from one command. SFT, reward model, PPO.

The command line is `chatsmith`; in Python, `chatsmith.load` gives an assistant to talk to, and
`chatsmith.pipeline.train` runs what a `chatsmith.config.Config` describes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatsmith.assistant import Assistant as Assistant
    from chatsmith.assistant import load as load
    from chatsmith.config import Config as Config
    from chatsmith.models.reward import Reward as Reward
    from chatsmith.stages.policy import PolicyTrainer as PolicyTrainer
    from chatsmith.stages.rl import load_reward as load_reward

__version__ = "0.2.0"

# name -> module it is imported from at its first use: `import chatsmith` alone loads no torch
_PUBLIC = {
    "Assistant": "chatsmith.assistant",
    "Config": "chatsmith.config",
    "PolicyTrainer": "chatsmith.stages.policy",
    "Reward": "chatsmith.models.reward",
    "load": "chatsmith.assistant",
    "load_reward": "chatsmith.stages.rl",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
