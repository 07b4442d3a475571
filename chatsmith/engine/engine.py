"""The generation engine: requests in, tokens out, with the weights of a model that somebody else may be training.

`add` queues a request, `step` advances everything that runs and reports events. `generate` and `stream` are loops over
both, of which several may be under way: whichever makes a step keeps what the others will read. One step is: admit and
prefill what waits, or decode the next token of every row; sample; let ended rows go. A prompt that is too long for one
step is computed in chunks, and the rows decode a token between two.

Rows of different length run together. A model that computes something else then (`models/lm.py` tries it) runs one
sequence at a time.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chatsmith.engine.forward import ChunkedPrompt, OneByOne, Together
from chatsmith.engine.sampling import Draws, sample
from chatsmith.engine.scheduler import Request as Request
from chatsmith.engine.scheduler import Running, Scheduler
from chatsmith.engine.scheduler import Sampling as Sampling
from chatsmith.errors import ModelError
from chatsmith.models.way import way_of
from chatsmith.seeds import uniforms
from chatsmith.types import FinishReason

# Padded tokens of one prefill. On a CPU activations should stay in its caches.
MAX_PREFILL_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Event:
    """One sampled token. `finish_reason` is set on the last one of its sequence."""

    request: int
    sample: int
    token: int
    logprob: float  # see `sampling.sample`
    finish_reason: FinishReason | None


@dataclass
class Completion:
    """One sampled sequence: its tokens and the log-prob of each (`sampling.sample`).

    The last token is part of it: a stop id, or the token that completes a stop string.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    ended: bool = False


class Engine:
    """Generates with `model`, at most `max_batch` sequences at a time; a place is free as soon as its sequence ends.

    It lives as long as its model. Weights may change between sessions: an optimizer step is visible to the very next
    one. Who changes them where a session may be open calls `refresh`.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch: int,
        compiled: bool = False,
        together: bool | None = None,
        max_prefill_tokens: int | None = None,
    ) -> None:
        """
        Args:
            compiled: decode with `torch.compile`, which takes a minute at first.
            together: whether sequences run together; None: as was decided for this model (`way_of`).
            max_prefill_tokens: padded prompt tokens of one step; None: what suits the device. Models whose sequences do
                not run together, or that take no chunks, compute a longer prompt at once all the same.
        """
        self.model = model
        way = way_of(model)
        together = way.sampling == "together" if together is None else together
        self._forward: OneByOne | Together = OneByOne(model)
        if together:
            self._forward = Together(model, max_rows=max_batch, compiled=compiled)
        self._scheduler = Scheduler(
            max_batch,
            max_prefill_tokens or MAX_PREFILL_TOKENS[model.device.type],
            chunked=together and way.chunks,
        )
        self._chunked: ChunkedPrompt | None = None  # of the sequences that the scheduler has begun
        self._draws: Draws | None = None
        self._next_id = 0
        self._sessions = 0  # that are open
        self._was_training = False
        self._answers: dict[int, list[Completion]] = {}  # so far, to the requests of `generate` and `stream`

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def add(self, request: Request) -> int:
        """Queue a request; returns the id that its events carry.

        Raises:
            ModelError: if it may grow longer than rows that the model computes together.
            MemoryError: if even alone it would find no room for its keys and values.
        """
        length, limit = len(request.tokens) + request.max_new_tokens, way_of(self.model).limit
        if limit is not None and length > limit:
            raise ModelError(
                f"{type(self.model).__name__}: prompt and answer may have {length} tokens; here they may have {limit}, "
                "because in longer rows its rotations change."
            )
        self._forward.check_room(length)
        self._next_id += 1
        self._scheduler.add(self._next_id - 1, request)
        return self._next_id - 1

    def cancel(self, request: int) -> None:
        """Drop a request, whether it waits or runs; no more events of it follow."""
        for row in self._scheduler.cancel(request):
            self._release(row)
        if not self._scheduler.begun:
            self._chunked = None

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One more token: the first one for sequences that begin now, else one in every row (on a GPU a few).

        A chunk of a prompt has no events, but for the last one.
        """
        if admitted := self._admit():
            return self._start(admitted, self._forward.prefill(admitted, len(self._scheduler.rows) - len(admitted)))
        if chunk := self._scheduler.chunk():
            return self._extend(chunk)
        return self._decode() if self._scheduler.rows else []

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completions per request, one per seed, in the order of the requests."""
        with self.session(), self._answers_to(requests) as answers:
            while not self.idle:
                self._advance()
            return list(answers.values())

    def stream(self, request: Request) -> Generator[tuple[int, FinishReason | None], None, None]:
        """The tokens of a request of one seed as they are sampled, the last one with why it is the last.

        Closing it gives the request up. It ends early where `refresh` does so.
        """
        with self.session(), self._answers_to([request]) as answers:
            ((id, (answer,)),) = answers.items()
            read = 0
            while True:
                while read == len(answer.tokens):
                    if id not in self._answers:
                        return
                    self._advance()
                read += 1
                is_last = answer.ended and read == len(answer.tokens)
                yield answer.tokens[read - 1], answer.finish_reason if is_last else None
                if is_last:
                    return

    @contextmanager
    def session(self) -> Iterator[None]:
        """Between training and generating: dropout off inside; the key/value cache is freed on leaving the last one
        that is open, and copies of weights."""
        if not self._sessions:
            self._was_training = self.model.training
            self.model.eval()
        self._sessions += 1
        try:
            yield
        finally:
            self._sessions -= 1
            if not self._sessions:
                self.model.train(self._was_training)
                self.refresh()

    def refresh(self) -> None:
        """Forget all that comes from the weights as they were: what runs is given up, and memory is freed."""
        self._scheduler.clear()
        self._answers.clear()
        self._forward.free()
        self._draws = self._chunked = None

    @contextmanager
    def _answers_to(self, requests: Sequence[Request]) -> Iterator[dict[int, list[Completion]]]:
        """By the ids of these requests, what is sampled for them inside; on leaving they are given up."""
        answers: dict[int, list[Completion]] = {}
        try:
            for request in requests:
                id = self.add(request)
                answers[id] = self._answers[id] = [Completion() for _ in request.seeds]
            yield answers
        finally:
            for id, group in answers.items():
                if self._answers.pop(id, None) is not None and not all(answer.ended for answer in group):
                    self.cancel(id)

    def _advance(self) -> None:
        """One step for everybody. Where it fails nobody knows what the rows hold: all are given up."""
        try:
            events = self.step()
        except BaseException:
            self.refresh()
            raise
        for event in events:
            completion = self._answers[event.request][event.sample]
            completion.tokens.append(event.token)
            completion.logprobs.append(event.logprob)
            if event.finish_reason is not None:
                completion.finish_reason, completion.ended = event.finish_reason, True

    def _admit(self) -> list[Running]:
        """The sequences to begin now: no more than the memory holds."""
        scheduler = self._scheduler
        if scheduler.begun or not scheduler.waiting:
            return []
        scheduler.max_rows = self._forward.reserve(
            len(scheduler.rows), scheduler.waiting, scheduler.longest, scheduler.longest_chunked
        )
        return scheduler.admit()

    def _extend(self, chunk: Sequence[int]) -> list[Event]:
        """Compute the next chunk of a prompt; after the last one its sequences start."""
        self._chunked = self._chunked or ChunkedPrompt(self.model)
        logits = self._chunked.extend(chunk)
        started = self._scheduler.start()
        if not started:
            return []
        self._forward.adopt(self._chunked, len(self._scheduler.rows) - len(started), len(started))
        self._chunked = None
        return self._start(started, logits.expand(len(started), -1))

    def _start(self, started: list[Running], logits: Tensor) -> list[Event]:
        """Events of the first tokens of the last rows, from the logits [n, V] behind their prompts."""
        for sequence in started:
            sequence.uniforms = uniforms(sequence.seed, sequence.limit).tolist()
        drawn = self._draw(logits, started, self._numbers(started, 1)[0])
        return self._take([drawn], started, len(self._scheduler.rows) - len(started))

    def _decode(self) -> list[Event]:
        """Events of the next token in every row, or on a GPU of a few tokens."""
        rows = list(self._scheduler.rows)
        steps = min(self._forward.stride, max(row.limit - row.produced for row in rows))
        self._forward.begin(rows, steps)
        numbers = self._numbers(rows, steps)
        drawn: list[tuple[Tensor, Tensor]] = []
        for step in range(steps):
            if step:
                self._forward.feed(drawn[-1][0])
            drawn.append(self._draw(self._forward.logits()[: len(rows)], rows, numbers[step]))
        return self._take(drawn, rows, first_row=0)

    def _numbers(self, rows: Sequence[Running], steps: int) -> Tensor:
        """The uniform numbers [steps, n] that decide the next tokens; behind a row's limit any."""
        numbers = [[row.uniforms[min(row.produced + step, row.limit - 1)] for row in rows] for step in range(steps)]
        return torch.tensor(numbers, device=self.model.device)

    def _draw(self, logits: Tensor, rows: list[Running], numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs, [n] each."""
        if self._draws is None or rows != self._draws.rows:
            self._draws = Draws.of(rows, logits.shape[1], logits.device)
        tokens, logprobs, _ = sample(logits, numbers, self._draws)
        self._draws.note(tokens)
        return tokens, logprobs

    def _take(self, drawn: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Running], first_row: int) -> list[Event]:
        """Events of what rows have drawn at one or more steps; those that end are let go."""
        # one transfer from the device; fp64 holds token ids exactly
        steps = torch.stack([torch.stack([part.double() for part in step]) for step in drawn]).tolist()
        events, ended = [], set()
        for tokens, logprobs in steps:
            for row, sequence in enumerate(rows):
                if row in ended:
                    continue
                reason = sequence.take(int(tokens[row]))
                events.append(Event(sequence.request, sequence.sample, sequence.last, logprobs[row], reason))
                if reason is not None:
                    ended.add(row)
        for row in sorted(ended, reverse=True):
            self._release(first_row + row)
        return events

    def _release(self, row: int) -> None:
        source = self._scheduler.release(row)
        if source is not None:
            self._forward.move(source, row, self._scheduler.rows[row].position + 1)
