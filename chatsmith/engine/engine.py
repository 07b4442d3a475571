"""The generation engine: requests in, tokens out, with the weights of a model that somebody else may be training.

`add` queues a request, `step` advances everything that runs by one token and reports events, `generate` is the loop
over both. Requests that wait are admitted together when the running batch is done; rows that have ended leave the
batch as soon as they are half of it.
"""

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from chatsmith.engine.sampling import sample
from chatsmith.seeds import uniforms
from chatsmith.types import FinishReason


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it: one sequence per seed."""

    tokens: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[int, ...]
    sampling: Sampling
    seeds: tuple[int, ...]


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
    """One sampled sequence: its tokens (a sampled stop id included) and both log-probs of each (`sampling.sample`)."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


@dataclass
class _Sequence:
    """A sequence that waits or runs."""

    request: int
    sample: int
    prompt: tuple[int, ...]
    limit: int
    stops: frozenset[int]
    sampling: Sampling
    uniforms: Tensor
    produced: int = 0
    ended: bool = False


class Engine:
    """Generates with `model`, at most `max_batch` sequences at a time.

    Weights are read afresh at every step: an optimizer step is visible to the next token.
    """

    def __init__(self, model: Any, *, pad_id: int, max_batch: int) -> None:
        self.model = model
        self.pad_id = pad_id
        self.max_batch = max_batch
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._last_position = positions - 1 if positions else None
        # BLOOM takes none: its ALiBi biases follow from the attention mask
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._next_id = 0
        self._cache: DynamicCache | None = None
        self._attention = torch.empty(0)  # [B, T] of the running rows, left-padded
        self._last = torch.empty(0)  # [B, 1] last token of each row

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def add(self, request: Request) -> int:
        """Queue a request; returns the id that its events carry."""
        for index, seed in enumerate(request.seeds):
            self._waiting.append(
                _Sequence(
                    request=self._next_id,
                    sample=index,
                    prompt=request.tokens,
                    limit=request.max_new_tokens,
                    stops=frozenset(request.stops),
                    sampling=request.sampling,
                    uniforms=uniforms(seed, request.max_new_tokens),
                )
            )
        self._next_id += 1
        return self._next_id - 1

    def cancel(self, request: int) -> None:
        """Drop a request, whether it waits or runs; no more events of it follow."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request != request)
        for sequence in self._running:
            sequence.ended |= sequence.request == request
        self._compact()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One more token for every running sequence; admits waiting ones when none runs."""
        if not self._running:
            if not self._waiting:
                return []
            logits = self._prefill()
        else:
            logits = self._decode()
        return self._sample(logits)

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
            self._running, self._cache = [], None
            self._waiting.clear()

    def _prefill(self) -> Tensor:
        self._running = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
        device = self.model.device
        width = max(len(sequence.prompt) for sequence in self._running)
        tokens = torch.full((len(self._running), width), self.pad_id)
        attention = torch.zeros_like(tokens)
        for row, sequence in enumerate(self._running):
            tokens[row, width - len(sequence.prompt) :] = torch.tensor(sequence.prompt)
            attention[row, width - len(sequence.prompt) :] = 1
        self._attention = attention.to(device)
        self._cache = DynamicCache(config=self.model.config)
        return self._forward(tokens.to(device))

    def _decode(self) -> Tensor:
        self._attention = torch.cat([self._attention, self._attention.new_ones(len(self._running), 1)], 1)
        return self._forward(self._last)

    def _forward(self, tokens: Tensor) -> Tensor:
        # Rows that have ended are computed until they are let go: they must not run past the last position.
        positions = (self._attention.cumsum(1) - 1).clamp(min=0, max=self._last_position)[:, -tokens.shape[1] :]
        inputs = {"input_ids": tokens, "attention_mask": self._attention, "position_ids": positions}
        if not self._takes_positions:
            del inputs["position_ids"]
        output = self.model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]  # [B, V]
        return logits

    def _sample(self, logits: Tensor) -> list[Event]:
        running, device = self._running, logits.device
        tokens, logprobs, sampled = sample(
            logits,
            torch.stack([s.uniforms[min(s.produced, s.limit - 1)] for s in running]).to(device),
            torch.tensor([s.sampling.temperature for s in running], device=device),
            torch.tensor([s.sampling.top_k for s in running], device=device),
            torch.tensor([s.sampling.top_p for s in running], device=device),
        )
        self._last = tokens[:, None]
        events = []
        rows = zip(running, tokens.tolist(), logprobs.tolist(), sampled.tolist(), strict=True)
        for sequence, token, logprob, sampled_logprob in rows:
            if sequence.ended:
                continue
            sequence.produced += 1
            reason: FinishReason | None = None
            if token in sequence.stops:
                reason = "stop"
            elif sequence.produced == sequence.limit:
                reason = "length"
            sequence.ended = reason is not None
            events.append(Event(sequence.request, sequence.sample, token, logprob, sampled_logprob, reason))
        self._compact()
        return events

    def _compact(self) -> None:
        """Let ended rows go once they are half of the batch."""
        alive = [row for row, sequence in enumerate(self._running) if not sequence.ended]
        if not alive:
            self._running, self._cache = [], None
        elif len(alive) <= len(self._running) // 2 and self._cache is not None:
            index = torch.tensor(alive, device=self._last.device)
            self._cache.batch_select_indices(index)
            self._attention, self._last = self._attention[index], self._last[index]
            self._running = [self._running[row] for row in alive]
