"""How the next logits of running sequences are computed: prefill for those that begin, decoding steps for the others.

Inputs of a decoding step lie at fixed addresses and `feed` writes the next ones, so the host need not look between two
steps. On a GPU a step is recorded once per shape as a CUDA graph and then replayed, without the time that Python takes
to start some hundred kernels.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from chatsmith.cpu.linears import PackedLinears
from chatsmith.engine.cache import SlotCache, free_bytes, prefill_cache, rounded_up
from chatsmith.engine.scheduler import Running, prompts_of
from chatsmith.errors import ConfigError
from chatsmith.files.directories import own_cache
from chatsmith.files.writing import scratch
from chatsmith.models.arguments import cache_argument, cache_of, takes_positions
from chatsmith.models.attention import packing
from chatsmith.models.counts import cache_shapes
from chatsmith.models.passes import Pass
from chatsmith.models.way import way_of

STRIDE = 8  # decoding steps on a GPU before the host looks at the tokens
ATTENDED_STEP = {"cpu": 16, "cuda": 128}  # lengths that attention sees are multiples of it
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)  # of recorded steps; above them all rows
ROWS_WORTH_PACKING = 4  # so many sequences make up for copying the weights

Forward = Callable[..., Tensor]
"""(tokens [B, T], positions [B, T], cache) -> logits [B, V]."""


class OneByOne:
    """One sequence at a time, in the cache that the model itself makes, or in none."""

    stride = 1

    def __init__(self, model: Any) -> None:
        way = way_of(model)
        self._model, self._keeps = model, way.sampling != "anew"
        self._cache_name = cache_argument(model) if self._keeps else ""
        self._masked = way.rows == "masked"  # then it needs a mask even where nothing is masked
        self._told_positions = self._keeps and way.told_positions and takes_positions(model)
        self._cache: Any = None
        self._sequence: Running

    def check_room(self, length: int) -> None:
        """What the model's own cache needs, nobody knows."""

    def reserve(self, running: int, waiting: int, longest: int, beside: int) -> int:
        return 1

    def prefill(self, admitted: Sequence[Running], first_row: int) -> Tensor:
        """Logits [1, V] behind the prompt."""
        self._cache = None
        self._row = list(admitted[0].prompt)
        return self._logits(self._row, begin=0)

    def adopt(self, prompt: "ChunkedPrompt", first_row: int, samples: int) -> None:
        raise NotImplementedError("prompts are computed whole")

    def begin(self, rows: Sequence[Running], steps: int) -> None:
        self._sequence = rows[0]

    def logits(self) -> Tensor:
        """[1, V] behind the last token."""
        self._row.append(self._sequence.last)
        if self._keeps:
            return self._logits([self._sequence.last], begin=self._sequence.position)
        return self._logits(self._row, begin=0)

    def feed(self, tokens: Tensor) -> None:
        raise NotImplementedError("one step at a time")

    def move(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError("there is one row")

    def free(self) -> None:
        self._cache = None

    def _logits(self, tokens: Sequence[int], begin: int) -> Tensor:
        """[1, V] behind tokens of which `begin` others stand in the cache."""
        device = self._model.device
        extra: dict[str, Any] = {"use_cache": self._keeps}
        if self._cache is not None:
            extra[self._cache_name] = self._cache
        if self._masked:
            extra["attention_mask"] = torch.ones(1, begin + len(tokens), dtype=torch.long, device=device)
        if self._told_positions:
            extra["position_ids"] = torch.arange(begin, begin + len(tokens), device=device)[None]
        with _head_at(self._model, torch.tensor([0]), torch.tensor([len(tokens) - 1])):
            output = self._model(input_ids=torch.tensor([tokens], device=device), **extra)
        if self._keeps:
            self._cache = cache_of(output)
        logits: Tensor = output.logits[:, -1]
        return logits


class Together:
    """Rows of different length together in a `SlotCache`."""

    def __init__(self, model: Any, *, max_rows: int, compiled: bool) -> None:
        self._model, self._max_rows = model, max_rows
        self._device: torch.device = model.device
        self._packs = way_of(model).rows == "packed"
        self._linears = PackedLinears(model)
        self._logits = logits_of(model)
        self._step = compile_(self._logits) if compiled else self._logits
        self.stride = STRIDE if self._device.type == "cuda" else 1
        self._records = self._device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._records else None
        self._graphs: dict[tuple[int, int], Any] = {}  # by shape
        self._stream: Any = None
        self._recorded_logits = torch.empty(0)
        self._cache = SlotCache(cache_shapes(model), device=self._device, dtype=model.dtype)
        self._tokens = self._positions = self._last_positions = torch.empty(0)
        self._shape = (0, 0)  # rows and length of the steps that `begin` has announced
        self._longest_that_fits = 0  # tokens of a sequence that was found to fit since `free`

    def check_room(self, length: int) -> None:
        """Raises:
        MemoryError: if a sequence of so many tokens would not fit alone.
        """
        if length <= max(self._longest_that_fits, self._cache.length):
            return
        tokens = free_bytes(self._device, self._cache.bytes) // self._cache.bytes_per_token
        if tokens < length:
            raise MemoryError(
                f"a sequence of {length} tokens does not fit: there is room for keys and values of {tokens} tokens."
            )
        self._longest_that_fits = length

    def reserve(self, running: int, waiting: int, longest: int, beside: int) -> int:
        """Make room for the rows that run and wait, of up to so many tokens each, or for as many as the memory holds.

        Args:
            beside: tokens whose keys and values must find room outside of the rows.
        Returns:
            how many rows may run.
        Raises:
            MemoryError: if there is no room for a single one.
        """
        wanted = running + waiting
        if self._cache.holds(min(wanted, self._max_rows), longest):
            return self._max_rows
        tokens = free_bytes(self._device, self._cache.bytes) // self._cache.bytes_per_token - beside
        if tokens < longest:  # although it would have fitted when it was added
            raise MemoryError(
                f"a sequence of {longest} tokens no longer fits: there is room for keys and values of {tokens} tokens."
            )
        most = min(self._max_rows, max(1, tokens // self._cache.rounded(longest)))
        if running < most and not self._cache.holds(min(wanted, most), longest):
            self._forget_graphs()
            self._cache.resize(min(most, max(wanted, 2 * self._cache.rows)), longest)
            rows = self._cache.rows
            self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=self._device)
            self._positions, self._last_positions = torch.zeros(2, rows, dtype=torch.long, device=self._device)
        return most

    def prefill(self, admitted: Sequence[Running], first_row: int) -> Tensor:
        """Logits [n, V] behind the prompts of sequences that take the rows from `first_row` on.

        Prompts that begin alike share the computation where the architecture can run packed.
        """
        self._pack_weights(len(admitted))
        prompts, index = prompts_of(admitted)
        of, cache = Pass.of(prompts, self._device), prefill_cache()
        own = torch.tensor(index, device=self._device)
        if self._packs:
            layout = of.layout
            last = layout.index.gather(1, of.lengths[:, None] - 1)[:, 0]
            with packing(layout) as extra, _head_at(self._model, torch.zeros_like(last), last):
                logits = self._logits(layout.tokens[None], layout.positions[None], cache, **extra)
            self._cache.store(cache, first_row, own, lambda x: layout.unpack(x[0].transpose(0, 1)).transpose(1, 2))
        else:
            positions = torch.arange(of.width, device=self._device)[None].expand_as(of.tokens)
            with _head_at(self._model, torch.arange(len(prompts), device=self._device), of.lengths - 1):
                logits = self._logits(of.tokens, positions, cache)
            self._cache.store(cache, first_row, own, lambda x: x)
        return logits[own]

    def adopt(self, prompt: "ChunkedPrompt", first_row: int, samples: int) -> None:
        """Rows from `first_row` on begin behind a prompt that has been computed, as many as there are samples of it."""
        self._pack_weights(first_row + samples)
        self._cache.store(prompt.cache, first_row, torch.zeros(1, dtype=torch.long, device=self._device), lambda x: x)
        for row in range(first_row + 1, first_row + samples):
            self._cache.copy(first_row, row, prompt.length)

    def begin(self, rows: Sequence[Running], steps: int) -> None:
        """So many calls of `logits` follow, with one of `feed` between two.

        A row that reaches its limit on the way goes on at its own last position; what it draws then is for nobody.
        """
        numbers = torch.tensor([(row.last, row.position, row.end - 1) for row in rows]).to(self._device)
        n = self._rows_of_a_step(len(rows))
        self._tokens[: len(rows)] = numbers[:, :1]
        self._positions[: len(rows)], self._last_positions[: len(rows)] = numbers[:, 1], numbers[:, 2]
        self._positions[len(rows) : n] = 0
        longest = max(min(row.position + steps, row.end) for row in rows)
        self._shape = (n, min(self._cache.length, rounded_up(longest, ATTENDED_STEP[self._device.type])))
        self._cache.begin(self._positions[:n], self._shape[1])

    def logits(self) -> Tensor:
        """[n, V] behind the tokens of the rows, which it stores; on a GPU rows that nobody asked for may follow."""
        if self._records and self._shape not in self._graphs:
            self._record()
        if not self._records:
            return self._compute()
        self._graphs[self._shape].replay()
        return self._recorded_logits[: self._shape[0]]

    def feed(self, tokens: Tensor) -> None:
        """What has been drawn, [n], is what the next step computes."""
        n = len(tokens)
        self._tokens[:n] = tokens[:, None]
        self._positions[:n] = torch.minimum(self._positions[:n] + 1, self._last_positions[:n])

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source` of `length` tokens takes the place of row `target`."""
        self._cache.copy(source, target, length)

    def free(self) -> None:
        """Let go of the cache's memory and of copies of weights, which may change from here on."""
        self._linears.remove()
        self._cache.free()
        self._longest_that_fits = 0
        self._forget_graphs()  # last: it returns to the device what nobody uses

    def _pack_weights(self, rows: int) -> None:
        """For steps of so many rows, if these are enough."""
        if rows >= ROWS_WORTH_PACKING and not self._linears.installed:
            self._linears.install()

    def _compute(self) -> Tensor:
        n = self._shape[0]
        return self._step(self._tokens[:n], self._positions[:n, None], self._cache)

    def _rows_of_a_step(self, rows: int) -> int:
        if not self._records:
            return rows
        return min(self._cache.rows, next((bucket for bucket in ROW_BUCKETS if bucket >= rows), self._cache.rows))

    def _record(self) -> None:
        """Make a graph of the step that `begin` has announced; do without from now on if the model allows none.

        The step is computed before it is recorded, which stores what the replay stores again. The first time it is
        watched for anything that waits for the device: a recording that fails would leave torch's allocator broken.
        """
        watched = bool(self._graphs)
        self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                logits = self._compute()
                if not watched:
                    self._recorded_logits = logits.new_empty(self._cache.rows, logits.shape[1])
                    with _waiting_is_an_error():
                        self._compute()
                torch.cuda.empty_cache()  # a recording cannot take what torch has reserved without use
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    self._recorded_logits[: self._shape[0]] = self._compute()
                finally:
                    graph.capture_end()
            self._graphs[self._shape] = graph
        except torch.OutOfMemoryError:
            if not self._graphs:  # the pool is gone with its only graph
                self._pool = torch.cuda.graph_pool_handle()
            raise
        except RuntimeError as error:
            warnings.warn(f"{type(self._model).__name__} decodes without CUDA graphs, slowly: {error}", stacklevel=2)
            self._records = False
        finally:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _forget_graphs(self) -> None:
        """They read addresses that are about to change; a pool of memory cannot outlive its graphs."""
        if self._graphs:
            self._graphs, self._pool = {}, torch.cuda.graph_pool_handle()
            self._recorded_logits = torch.empty(0)
            torch.cuda.empty_cache()


def compile_(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which torch compiles at its first call.

    Raises:
        ConfigError: when it is called, if torch cannot.
    """
    _compile_in_own_directory()
    compiled = torch.compile(function, dynamic=True)

    def call(*arguments: Any, **options: Any) -> Tensor:
        try:
            result: Tensor = compiled(*arguments, **options)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ConfigError(
                f"engine.compile: torch cannot compile here: {reason}. Install a C++ compiler (g++), or leave out "
                "--engine.compile."
            ) from error
        return result

    return call


def _compile_in_own_directory() -> None:
    """torch keeps code that it has compiled, and runs it again; where it does by default, others may have put some."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        try:
            place = str(own_cache() / "inductor")
        except OSError:
            place = str(scratch())
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = place


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        ConfigError: if torch cannot.
    """
    compile_(lambda x: 2 * x + 1)(torch.ones(8, device=device))


class ChunkedPrompt:
    """A prompt that is computed chunk after chunk, so that the activations are those of a chunk."""

    def __init__(self, model: Any) -> None:
        self._model, self._logits = model, logits_of(model)
        self.cache = prefill_cache()
        self.length = 0  # tokens that have been computed

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Logits [1, V] behind the next chunk."""
        begin, self.length = self.length, self.length + len(tokens)
        return _extended(self._model, self._logits, self.cache, tokens, begin)


def logits_of(model: Any) -> Forward:
    """The model as a function to the logits of the last token of each row, the only ones that anybody needs."""
    told_positions, cache_name = takes_positions(model), cache_argument(model)

    def forward(tokens: Tensor, positions: Tensor, cache: Any, **extra: Any) -> Tensor:
        extra[cache_name] = cache
        if told_positions:
            extra["position_ids"] = positions
        logits: Tensor = model(input_ids=tokens, use_cache=True, **extra).logits[:, -1]
        return logits

    return forward


def _extended(model: Any, logits: Forward, cache: Any, tokens: Sequence[int], begin: int) -> Tensor:
    """Logits [1, V] behind tokens of a single sequence, of which `begin` stand in the cache."""
    positions = torch.arange(begin, begin + len(tokens), device=model.device)[None]
    with _head_at(model, torch.tensor([0]), torch.tensor([len(tokens) - 1])):
        return logits(torch.tensor([tokens], device=model.device), positions, cache)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Inside, what waits for a GPU raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # a prototype, torch says
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _head_at(model: Any, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Inside, the model's head sees the states [n] at `rows` and `positions` alone: no logits of whole prompts."""

    def select(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (arguments[0][rows, positions][:, None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
