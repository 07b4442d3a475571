"""The nouns, and the notation that every file uses.

Letters in shape comments: B sequences, T tokens, V vocabulary, P prompts, G samples per prompt, N selected tokens.

Alignment: **everything about token t is stored at index t.** `logprobs[b, t]` is log p(token t | tokens before t),
`values[b, t]` is V(state before token t is emitted), `mask[b, t]` is True where the policy sampled token t. Shifting
between "hidden state at t" and "prediction of t + 1" happens in `models/scoring.py` and nowhere else.

The road of one RL step, each object made once and never edited:

    Record -> Request -> Rollouts -> Scores -> Experience -> minibatches
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # these nouns are for commands too that need no torch
    from torch import Tensor

Role = Literal["system", "user", "assistant"]
Stage = Literal["sft", "pairs", "reward", "rl", "ptx"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt. `score` orders the answers of a record: higher is better, equal a tie, None unranked.

    `is_marked`: the score is a mark, +1 for good and -1 for bad. An answer marked bad is never imitated.
    """

    content: str
    score: float | None = None
    is_marked: bool = False


@dataclass(frozen=True)
class Record:
    """One example in the canonical form that every data format is turned into.

    Either `prompt` (ending with a user turn) and zero or more `answers` to it, or plain `text` for language modelling.
    `fields` is the row as it was read, for reward functions; `origin` is "file:line" or "dataset[row]" for messages.
    `unused` names the fields, as paths such as `messages[].id`, that are in none of the others.
    """

    prompt: tuple[Message, ...] = ()
    answers: tuple[Answer, ...] = ()
    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    origin: str = ""
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False)


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sample:
    """What a reward function sees: a conversation, the answer to judge, how it ended, and the record it came from.

    `tokens` is how many were sampled, the end of sequence included; None where nobody counted.
    """

    messages: tuple[Message, ...]
    answer: str
    finish_reason: FinishReason
    record: Record
    tokens: int | None = None


@dataclass(frozen=True)
class Rollouts:
    """What the policy did: prompts and sampled answers. Tensors are right-padded.

    A worked row, prompt of two tokens and an answer of two: sequence [7, 8, 21, 2], mask [F, F, T, T, F] where T is 5.
    """

    sequences: tuple[Sequence[int], ...]  # B rows of real tokens: prompt, then answer
    mask: "Tensor"  # [B, T] bool: sampled tokens, a sampled end of sequence included
    logprobs: "Tensor"  # [B, T] log-softmax(logits / temperature) of sampled tokens, 0 elsewhere
    prompts: tuple[int, ...]  # B numbers: of the prompt that the row answers
    samples: tuple[Sample, ...]  # B of them


@dataclass(frozen=True)
class Scores:
    """What the frozen models and the critic say about rollouts. No gradient anywhere."""

    logprobs: "Tensor"  # [B, T] the policy before this step's updates
    reference_logprobs: "Tensor"  # [B, T]
    values: "Tensor | None"  # [B, T]; None without a critic
    rewards: "Tensor"  # [B] standardised, clipped, weighted; without KL
    valid: "Tensor"  # [B] bool: False where the sample is excluded from training


@dataclass(frozen=True)
class Experience:
    """What the update learns from. Everything is 0 outside `mask`."""

    sequences: tuple[Sequence[int], ...]  # B rows of real tokens
    prompts: tuple[int, ...]  # B numbers: of the prompt that the row answers
    mask: "Tensor"  # [B, T] bool: sampled tokens of valid samples
    logprobs: "Tensor"  # [B, T] old log-probs
    reference_logprobs: "Tensor"  # [B, T]
    values: "Tensor | None"  # [B, T] old values; None without a critic
    advantages: "Tensor"  # [B, T] scaled as rl.scale says
    returns: "Tensor | None"  # [B, T] from advantages before scaling; None without a critic

    def rows(self, index: Sequence[int]) -> "Experience":
        """The sub-batch of rows `index`, trimmed to its longest row."""
        width = max((len(self.sequences[i]) for i in index), default=0)
        where = list(index)

        def pick(value: Any) -> Any:
            if value is None:
                return None
            return tuple(value[i] for i in where) if isinstance(value, tuple) else value[where, :width]

        return Experience(**{name: pick(value) for name, value in vars(self).items()})
