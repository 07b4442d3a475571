"""The generation engine: requests in, tokens out, with the weights of a model that somebody else may be training.

`add` queues a request, `step` advances everything that runs by one token and reports events, `generate` is the loop
over both. One step is: admit and prefill what waits, or decode one token in every row; sample; let ended rows go.

Rows of different length run together in a `SlotCache`. A model that computes something else then (`carries` tries it)
runs one sequence at a time in transformers' own cache.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from chatsmith.engine.cache import SlotCache, prefill_cache
from chatsmith.engine.sampling import Draws, sample
from chatsmith.engine.scheduler import Request as Request
from chatsmith.engine.scheduler import Running, Scheduler, prompts_of
from chatsmith.engine.scheduler import Sampling as Sampling
from chatsmith.seeds import uniforms
from chatsmith.types import FinishReason

MAX_PREFILL_TOKENS = 8192  # padded tokens of one prefill, if it has more than one prompt


@dataclass(frozen=True)
class Event:
    """One sampled token. `finish_reason` is set on the last one of its sequence."""

    request: int
    sample: int
    token: int
    logprob: float
    sampled_logprob: float
    finish_reason: FinishReason | None


@dataclass
class Completion:
    """One sampled sequence: its tokens and both log-probs of each (`sampling.sample`).

    The last token is part of it: a stop id, or the token that completes a stop string.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


class Engine:
    """Generates with `model`, at most `max_batch` sequences at a time; a place is free as soon as its sequence ends.

    Weights are read afresh at every step: an optimizer step is visible to the next token.
    """

    def __init__(self, model: Any, *, pad_id: int, max_batch: int, together: bool | None = None) -> None:
        """
        Args:
            together: whether sequences run together; None: if the model `carries` it.
        """
        self.model = model
        self._pad_id = pad_id
        self._together = carries(model) if together is None else together
        self._scheduler = Scheduler(max_batch if self._together else 1, MAX_PREFILL_TOKENS)
        # BLOOM takes none: its ALiBi biases follow from the attention mask
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._cache: Any = None
        self._draws: Draws | None = None
        self._next_id = 0

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def add(self, request: Request) -> int:
        """Queue a request; returns the id that its events carry."""
        self._next_id += 1
        self._scheduler.add(self._next_id - 1, request)
        return self._next_id - 1

    def cancel(self, request: int) -> None:
        """Drop a request, whether it waits or runs; no more events of it follow."""
        for row in self._scheduler.cancel(request):
            self._release(row)

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One more token: the first one for sequences that begin now, else one in every row."""
        if admitted := self._scheduler.admit():
            return self._sample(self._prefill(admitted), first_row=len(self._scheduler.rows) - len(admitted))
        if not self._scheduler.rows:
            return []
        return self._sample(self._decode(), first_row=0)

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completions per request, one per seed, in the order of the requests."""
        ids = {self.add(request): [Completion() for _ in request.seeds] for request in requests}
        with self.session():
            while not self.idle:
                for event in self.step():
                    completion = ids[event.request][event.sample]
                    completion.tokens.append(event.token)
                    completion.logprobs.append(event.logprob)
                    completion.sampled_logprobs.append(event.sampled_logprob)
                    completion.finish_reason = event.finish_reason or completion.finish_reason
        return list(ids.values())

    @contextmanager
    def session(self) -> Iterator[None]:
        """Between training and generating: dropout off inside, the key/value cache freed on leaving."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
            self._scheduler.clear()
            self._cache = None

    def _prefill(self, admitted: Sequence[Running]) -> Tensor:
        """Logits [n, V] behind the prompts of sequences that begin; samples of one prompt share its pass."""
        for sequence in admitted:
            sequence.uniforms = uniforms(sequence.seed, sequence.limit).tolist()
        prompts, index = prompts_of(admitted)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.model.device)
        tokens = torch.full((len(prompts), int(lengths.max())), self._pad_id)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        cache = prefill_cache() if self._together else DynamicCache(config=self.model.config)
        positions = torch.arange(tokens.shape[1], device=self.model.device)[None].expand_as(tokens)
        with _only_last(self.model, lengths - 1):
            logits = self._forward(tokens.to(self.model.device), positions, cache)
        if not self._together:
            self._cache = cache
            return logits
        self._cache = self._cache or SlotCache(cache)
        first = len(self._scheduler.rows) - len(admitted)
        self._cache.store(cache, range(first, len(self._scheduler.rows)), index)
        return logits[index]

    def _decode(self) -> Tensor:
        """Logits [n, V] behind the last token of every row."""
        rows, device = self._scheduler.rows, self.model.device
        positions = torch.tensor([sequence.position for sequence in rows], device=device)
        if self._together:
            self._cache.begin(positions, max(sequence.position for sequence in rows))
        tokens = torch.tensor([[sequence.last] for sequence in rows], device=device)
        return self._forward(tokens, positions[:, None], self._cache)

    def _forward(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        extra = {"position_ids": positions} if self._takes_positions else {}
        output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **extra)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _sample(self, logits: Tensor, first_row: int) -> list[Event]:
        """Draw a token for the rows from `first_row` on, whose logits [n, V] these are, and let ended ones go."""
        rows, device = self._scheduler.rows[first_row:], logits.device
        if self._draws is None or rows != self._draws.rows:
            self._draws = Draws.of(rows, logits.shape[1], device)
        uniform = torch.tensor([sequence.uniforms[sequence.produced] for sequence in rows], device=device)
        drawn = sample(logits, uniform, self._draws)
        self._draws.note(drawn[0])
        events = []
        # one transfer from the device; fp64 holds token ids exactly
        tokens, logprobs, sampled = torch.stack([part.double() for part in drawn]).tolist()
        for sequence, token, logprob, sampled_logprob in zip(rows, tokens, logprobs, sampled, strict=True):
            reason = sequence.take(int(token))
            events.append(Event(sequence.request, sequence.sample, sequence.last, logprob, sampled_logprob, reason))
        for row in reversed(range(len(events))):
            if events[row].finish_reason is not None:
                self._release(first_row + row)
        return events

    def _release(self, row: int) -> None:
        source = self._scheduler.release(row)
        if source is not None:
            self._cache.move(source, row, self._scheduler.rows[row].position + 1)


@contextmanager
def _only_last(model: Any, last: Tensor) -> Iterator[None]:
    """Inside, the model's head sees position `last` [B] of each row alone: no logits of whole prompts."""

    def select(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[torch.arange(len(hidden), device=hidden.device), last][:, None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


_carries: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@torch.no_grad()
def carries(model: Any) -> bool:
    """Whether rows of different length that run together get this model's own log-probs: tried once, on short prompts.

    Some architectures fail loudly (MPT), some silently (GPT-Neo takes a query's position for the length of the cache).
    """
    if model not in _carries:
        vocabulary = model.config.get_text_config().vocab_size
        prompts = [tuple((7 * start + i) % vocabulary for i in range(length)) for start, length in enumerate((3, 7, 5))]
        requests = [Request(prompt, 4, (), Sampling(temperature=0.0), (0,)) for prompt in prompts]
        try:  # three prompts through two rows: one begins where another has ended
            answers = Engine(model, pad_id=0, max_batch=2, together=True).generate(requests)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            _carries[model] = False
        else:
            gaps = [_gap(model, prompt, group[0]) for prompt, group in zip(prompts, answers, strict=True)]
            _carries[model] = max(gaps) < (1e-3 if model.dtype == torch.float32 else 5e-2)
    return _carries[model]


def _gap(model: Any, prompt: Sequence[int], answer: Completion) -> float:
    """Mean difference of an answer's log-probs from those of one plain forward pass."""
    tokens = torch.tensor([[*prompt, *answer.tokens]], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    plain = torch.log_softmax(logits, -1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return float((plain - torch.tensor(answer.logprobs, device=model.device)).abs().mean())
