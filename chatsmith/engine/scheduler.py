"""Which sequence runs in which row, and who comes next. Plain Python: it holds no tensors.

Running sequences stand densely in rows 0..n-1. When one ends, the last row takes its place, so that a step never
computes a row that nobody waits for.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from chatsmith.types import FinishReason


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary.

    Logits of tokens that stand in the prompt or the answer are divided by `repetition_penalty`, negative ones
    multiplied: above 1 they become less likely.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it: one sequence per seed.

    A sequence ends at an id of `stops`. `watch`, if given, makes a listener for each sequence. It is told every other
    token and says whether the sequence ends there. That is how stop strings work, of which the engine knows nothing
    (`engine/text.py:stop_strings`).
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[int, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    watch: Callable[[], Callable[[int], bool]] | None = None


@dataclass(eq=False)  # each is itself, whatever another one holds
class Running:
    """One sequence: sample `sample` of request `request`."""

    request: int
    sample: int
    prompt: tuple[int, ...]
    limit: int
    stops: frozenset[int]
    sampling: Sampling
    seed: int
    ends_at: Callable[[int], bool] | None = None
    uniforms: list[float] = field(default_factory=list)  # one per token, drawn when it is admitted
    answer: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Its last sampled token."""
        return self.answer[-1]

    @property
    def produced(self) -> int:
        """How many tokens have been sampled."""
        return len(self.answer)

    @property
    def position(self) -> int:
        """Where its last token stands."""
        return len(self.prompt) + self.produced - 1

    @property
    def end(self) -> int:
        """Length of prompt and longest answer."""
        return len(self.prompt) + self.limit

    def take(self, token: int) -> FinishReason | None:
        """Note a sampled token; says whether the sequence ends with it."""
        self.answer.append(token)
        if token in self.stops or (self.ends_at is not None and self.ends_at(token)):
            return "stop"
        return "length" if self.produced == self.limit else None


class Scheduler:
    """Rows and queue of an engine.

    Args:
        max_rows: sequences that run together.
        max_prefill_tokens: padded prompt tokens that are computed at once.
        chunked: whether a prompt that is longer is computed in chunks, or at once all the same.
    """

    def __init__(self, max_rows: int, max_prefill_tokens: int, *, chunked: bool) -> None:
        self.rows: list[Running] = []
        self.begun: list[Running] = []  # they share a prompt that is computed in chunks; their rows follow the others
        self.max_rows, self._max_prefill_tokens, self._chunked = max_rows, max_prefill_tokens, chunked
        self._waiting: deque[Running] = deque()
        self._computed = 0  # tokens of the prompt in chunks
        self._rows_turn = False  # to compute something, while there is such a prompt
        self._lengths: Counter[tuple[int, int]] = Counter()  # of the sequences that are here: prompt, and at the end

    @property
    def longest(self) -> int:
        """Tokens that the longest sequence here may come to."""
        return max((end for _, end in self._lengths), default=0)

    @property
    def longest_chunked(self) -> int:
        """Tokens of the longest prompt here that is computed in chunks."""
        return max((prompt for prompt, _ in self._lengths if self._in_chunks(prompt)), default=0)

    @property
    def waiting(self) -> int:
        """How many sequences have not begun."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self.rows and not self.begun and not self._waiting

    def add(self, id: int, request: Request) -> None:
        prompt = len(request.tokens)
        self._lengths[prompt, prompt + request.max_new_tokens] += len(request.seeds)
        for sample, seed in enumerate(request.seeds):
            self._waiting.append(
                Running(
                    request=id,
                    sample=sample,
                    prompt=request.tokens,
                    limit=request.max_new_tokens,
                    stops=frozenset(request.stops),
                    sampling=request.sampling,
                    seed=seed,
                    ends_at=None if request.watch is None else request.watch(),
                )
            )

    def admit(self) -> list[Running]:
        """The sequences to begin now, in the rows behind those that run.

        None until a quarter of the rows is free, or enough for all that wait: a prefill of a single prompt costs those
        that run almost as much time as one of many. A prompt in chunks (`chunk`) is alone, and nobody begins before it.
        """
        free = self.max_rows - len(self.rows)
        if self.begun or free < min(max(1, self.max_rows // 4), len(self._waiting)):
            return []
        admitted: list[Running] = []
        prompts, width = 0, 0
        while self._waiting and len(admitted) < free:
            sequence = self._waiting[0]
            is_new = not admitted or sequence.request != admitted[-1].request
            widened = max(width, len(sequence.prompt))
            if is_new and prompts and (prompts + 1) * widened > self._max_prefill_tokens:
                break
            prompts, width = prompts + is_new, widened
            admitted.append(self._waiting.popleft())
        if self._in_chunks(width):
            self.begun, self._computed = admitted, 0
            return []
        self.rows += admitted
        return admitted

    def chunk(self) -> tuple[int, ...]:
        """The tokens to compute now of the prompt that has begun. None if there is no such prompt, and every other
        time if there are rows: it is their turn then."""
        self._rows_turn = bool(self.begun and self.rows) and not self._rows_turn
        if self._rows_turn or not self.begun:
            return ()
        start, self._computed = self._computed, self._computed + self._max_prefill_tokens
        return self.begun[0].prompt[start : self._computed]

    def start(self) -> list[Running]:
        """The sequences that have begun, which take their rows, if the last chunk of their prompt is computed."""
        if self._computed < len(self.begun[0].prompt):
            return []
        started, self.begun = self.begun, []
        self.rows += started
        return started

    def release(self, row: int) -> int | None:
        """Free a row. Returns the row that moves into it, or None if it was the last one."""
        self._forget([self.rows[row]])
        last = self.rows.pop()
        if row == len(self.rows):
            return None
        self.rows[row] = last
        return len(self.rows)

    def cancel(self, request: int) -> list[int]:
        """Forget what waits or has begun of a request; returns its rows, the last one first."""
        self._forget([s for s in (*self.begun, *self._waiting) if s.request == request])
        self.begun = [sequence for sequence in self.begun if sequence.request != request]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request != request)
        return [row for row in reversed(range(len(self.rows))) if self.rows[row].request == request]

    def clear(self) -> None:
        self.rows, self.begun = [], []
        self._waiting.clear()
        self._lengths.clear()

    def _forget(self, sequences: Iterable[Running]) -> None:
        for sequence in sequences:
            lengths = len(sequence.prompt), sequence.end
            self._lengths[lengths] -= 1
            if not self._lengths[lengths]:
                del self._lengths[lengths]

    def _in_chunks(self, prompt: int) -> bool:
        return self._chunked and prompt > self._max_prefill_tokens


def prompts_of(admitted: Sequence[Running]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different prompts among neighbours, and for every sequence the index of its own: samples share a prefill."""
    prompts: list[tuple[int, ...]] = []
    index = []
    for number, sequence in enumerate(admitted):
        if not number or sequence.request != admitted[number - 1].request:
            prompts.append(sequence.prompt)
        index.append(len(prompts) - 1)
    return prompts, index
