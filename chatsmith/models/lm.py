"""The door: how a model is computed is decided here, once, when it is loaded.

Our passes leave padding out, run the head apart from the body, compute what rows begin with once, and generate rows of
different length together. That is right for most architectures and silently wrong for some: those with a mask, a window
or a bias of their own, a state in place of keys and values, rotations that depend on the length of the batch. So no
architecture is looked up. Each way is tried on a small twin with large random weights (`twin.py`), on rows past every
window and short ones beside long ones, against transformers' plain forward pass over each row alone; then the one that
was chosen on a short row with the model's own weights. The fastest way that gives the model's own log-probs is taken.
Where there is none, the model is refused by name.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor

from chatsmith.engine.engine import Engine, Request, Sampling
from chatsmith.errors import ModelError
from chatsmith.models.passes import Pass
from chatsmith.models.scoring import hidden_states, plain_arguments, sequence_scores, token_logprobs
from chatsmith.models.twin import VOCABULARY, setting, twin
from chatsmith.models.way import Attention, Rows, Way, note, way_of
from chatsmith.models.way import Sampling as HowSampled

LENGTHS = (90, 21, 33)  # of the rows that are tried: past every window of the twin; the second begins as the first
SHARED = 8
PROMPTS = (3, 60, 17, 5)  # lengths of those that are answered, through two rows
ANSWER = 12
TEMPERATURE = 5.0  # a likely token's log-prob is 0 whatever the model computes
GAP = 5e-4  # nats in fp32: with logits of some tens another function is off by more, rounding by less
HEADS = ("apart", "whole")

Trial = Callable[[Any, list[list[int]]], list[Tensor]]
"""(model, rows) -> what is computed of each row."""

_decided: dict[str, Way] = {}  # by what a model is configured to be


def decide(model: Any) -> Way:
    """How a language model, a score model or a body without a head is computed, tried on its twin.

    Raises:
        ModelError: if it looks ahead, or cannot be computed here.
    """
    kind = f"{type(model).__qualname__} {model.device.type} {model.config._attn_implementation}"
    key = f"{kind} {model.config.to_json_string(use_diff=False)}"
    if key not in _decided:
        _decided[key] = _tried(model)
    return _decided[key]


@torch.no_grad()
def check_weights(model: Any) -> None:
    """One short row of a language model with its own weights, in its own precision, against its plain forward pass.

    Raises:
        ModelError: if they differ by more than rounding, or are no numbers.
    """
    rows = _rows(model, (8,))
    logits = _plain_logits(model, rows[0])
    if not logits.isfinite().all():
        raise ModelError(f"{type(model).__name__}: its weights give logits that are no numbers. Is the download whole?")
    own, plain = _logprobs(model, rows)[0], _logprobs_of(logits, rows[0])
    rounding = torch.finfo(model.dtype).eps * float(logits.abs().max())
    limit = max(GAP, 100 * rounding) if model.dtype == torch.float32 else min(0.5, max(5e-2, rounding))
    gap = float((own - plain).abs().mean())
    if not gap < limit:  # wrong attention costs about 1
        raise ModelError(
            f"{type(model).__name__}: log-probs computed here are {gap:.2g} nats from those of its own forward pass. "
            "Use a model of another architecture."
        )


def described(model: Any) -> str:
    """What was decided, in words; empty for the usual way."""
    way, said = way_of(model), []
    rows = {
        "padded": "computed on padded rows, its attention cannot be packed",
        "masked": "computed on padded rows with a mask, its attention cannot be packed",
        "alone": "computed one row at a time, because rows side by side change each other",
    }
    if way.rows in rows:
        said.append(rows[way.rows])
    if way.head == "whole":
        said.append("its head is computed with its body")
    if way.sampling == "alone":
        said.append("answers one prompt at a time, its rows cannot run together")
    elif way.sampling == "anew":
        said.append("computes all of a row again for each token of an answer, no cache gives its own log-probs")
    if way.limit is not None and way.limit < (setting(model.config.get_text_config(), "max_position_embeddings") or 0):
        said.append(f"rows of more than {way.limit} tokens are computed one at a time")
    return "; ".join(said)


def _tried(model: Any) -> Way:
    """The way that holds on rows of any length; if a faster one holds up to where rotations change, that one."""
    found: list[Way] = []
    error: Exception = ModelError("")
    for long in (True, False):
        subject = twin(model, long=long)
        try:
            way = _try(subject, _longest(model) if subject is model else max(LENGTHS))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as raised:  # of a row that is too long for it, or of code that nobody here has seen
            error = raised
            continue
        found.append(way if long else replace(way, limit=_turning_point(model.config)))
        if way.rows == "packed" and way.sampling == "together":
            break
    if found:
        return min(found, key=_slowness)
    if isinstance(error, ModelError):
        raise error
    raise ModelError(
        f"{type(model).__name__} cannot be computed here ({type(error).__name__}: {error}). Use a model of another "
        "architecture."
    ) from error


def _longest(model: Any) -> int:
    """Tokens of the longest row that is tried where there is no twin."""
    context = setting(model.config.get_text_config(), "max_position_embeddings")
    return min(context, max(LENGTHS)) if isinstance(context, int) else max(LENGTHS)


def _slowness(way: Way) -> tuple[int, int, bool]:
    return get_args(HowSampled).index(way.sampling), get_args(Rows).index(way.rows), way.limit is not None


def _turning_point(config: Any) -> int | None:
    """The length of rows at which rotations change; above it none were tried."""
    text = config.get_text_config()
    rotations = getattr(text, "rope_parameters", None) or {}
    tables = [vars(text), rotations, *(part for part in rotations.values() if isinstance(part, dict))]
    points = [table.get("original_max_position_embeddings") for table in tables]
    return min([p for p in points if p], default=getattr(text, "max_position_embeddings", None))


@torch.no_grad()
def _try(model: Any, longest: int) -> Way:
    """The fastest way in which a model, which is a twin, computes itself; on rows of up to so many tokens."""
    lengths = [min(length, longest) for length in LENGTHS]
    if getattr(model, "score", None) is not None:
        return _try_rows(model, lengths, _scores, _plain_scores)
    if model.get_output_embeddings() is None:
        return _try_rows(model, lengths, _states, _plain_states)
    way = _try_rows(model, lengths, _logprobs, _plain_logprobs, heads=HEADS)
    return _try_sampling(model, way, [min(length, longest - ANSWER) for length in PROMPTS])


def _try_rows(model: Any, lengths: Sequence[int], own: Trial, plain: Trial, heads: Sequence[Any] = HEADS[:1]) -> Way:
    rows = _rows(model, lengths)
    expected = torch.cat(plain(model, rows))
    for row in rows[:2]:
        _check_looks_back(model, row)

    def gap_of(way: Way) -> float:
        return float((torch.cat(own(model, rows)) - expected).abs().max())

    ways = [
        Way(how, attention, head)
        for attention, head, how in product(get_args(Attention), heads, get_args(Rows))
        if how != "packed" or (attention, head) == ("here", "apart")
    ]
    found, reasons = _first_right(model, ways, gap_of, lambda way: way.rows)
    if found is None:
        raise ModelError(
            f"{type(model).__name__}: rows computed here are not those of its own forward pass ({reasons}). Use a "
            "model of another architecture."
        )
    return found


def _first_right(
    model: Any, ways: Iterable[Way], gap_of: Callable[[Way], float], name: Callable[[Way], str]
) -> tuple[Way | None, str]:
    """The first way whose gap is rounding, or None and what was wrong with each."""
    reasons = []
    for way in ways:
        note(model, way)
        try:
            gap = gap_of(way)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever foreign code raises
            reasons.append(f"{name(way)}: {type(error).__name__}: {error}")
            continue
        if gap < GAP:
            return way, ""
        reasons.append(f"{name(way)}: {gap:.2g} nats off")
    return None, "; ".join(reasons)


def _check_looks_back(model: Any, row: list[int]) -> None:
    """What it says of the first half must not change with the second."""
    half = len(row) // 2
    other = row[:half] + row[half:][::-1]
    compute = _plain_states if model.get_output_embeddings() is None else _plain_logits_of
    one, two = (compute(model, [tokens])[0].view(len(row), -1)[:half] for tokens in (row, other))
    if not float((one - two).abs().max()) < GAP:
        raise ModelError(
            f"{type(model).__name__} looks ahead: what it says behind a token depends on the tokens that follow, so it "
            "cannot answer. Use a decoder (is_decoder in its config.json may be false)."
        )


def _try_sampling(model: Any, way: Way, lengths: Sequence[int]) -> Way:
    """Answers through two rows, a long prompt in chunks, the last ones where others have ended."""
    prompts = _rows(model, lengths)
    requests = [Request(tuple(prompt), ANSWER, (), Sampling(TEMPERATURE), (0,)) for prompt in prompts]

    def gap_of(tried: Way) -> float:
        try:
            answers = Engine(model, max_batch=2, max_prefill_tokens=14).generate(requests)
            rows = [[*prompt, *group[0].tokens] for prompt, group in zip(prompts, answers, strict=True)]
            expected = [values[-ANSWER:] for values in _plain_logprobs(model, rows, TEMPERATURE)]
        except Exception as error:
            if model.device.type == "cuda" and not isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                # perhaps it is not the architecture
                warnings.warn(f"{type(model).__name__}: rows cannot run {tried.sampling}: {error!r}", stacklevel=2)
            raise
        found = [torch.tensor(group[0].logprobs, device=model.device) for group in answers]
        return float((torch.cat(found) - torch.cat(expected)).abs().max())

    ways = (
        replace(way, sampling="together"),
        replace(way, sampling="together", chunks=False),
        replace(way, sampling="alone", chunks=False),
        replace(way, sampling="alone", chunks=False, told_positions=False),
        replace(way, sampling="anew", chunks=False, told_positions=False),
    )
    right, reasons = _first_right(model, ways, gap_of, lambda tried: tried.sampling)
    if right is None:
        raise ModelError(
            f"{type(model).__name__}: answers generated here would not be its own ({reasons}). Use a model of another "
            "architecture."
        )
    return right


def _rows(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Rows of random tokens; the second begins as the first."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    pad_id = setting(model.config.get_text_config(), "pad_token_id")
    allowed = torch.tensor([token for token in range(1, min(vocabulary, VOCABULARY)) if token != pad_id])
    rows = [allowed[torch.randint(len(allowed), (n,), generator=generator)].tolist() for n in lengths]
    return [rows[0], rows[0][:SHARED] + rows[1][SHARED:], *rows[2:]] if len(rows) > 1 else rows


def _logprobs(model: Any, rows: list[list[int]]) -> list[Tensor]:
    together = Pass.of(rows, model.device)
    mask = together.real.clone()
    mask[:, 0] = False
    values, _ = token_logprobs(model, together, mask, temperature=1.0, max_logits_bytes=1 << 30)
    return [found[1 : len(row)] for found, row in zip(values, rows, strict=True)]


def _states(body: Any, rows: list[list[int]]) -> list[Tensor]:
    together = Pass.of(rows, body.device)
    return [hidden_states(body, together, together.real).flatten()]


def _scores(model: Any, rows: list[list[int]]) -> list[Tensor]:
    return [sequence_scores(model, Pass.of(rows, model.device))]


def _plain_logits(model: Any, row: list[int]) -> Tensor:
    """[T, V] in fp32 of one row, as anybody would compute them with transformers."""
    tokens = torch.tensor([row], device=model.device)
    logits: Tensor = model(input_ids=tokens, **plain_arguments(model, tokens)).logits
    return logits[0].float()


def _plain_logits_of(model: Any, rows: list[list[int]]) -> list[Tensor]:
    return [_plain_logits(model, row).flatten() for row in rows]


def _plain_logprobs(model: Any, rows: list[list[int]], temperature: float = 1.0) -> list[Tensor]:
    return [_logprobs_of(_plain_logits(model, row) / temperature, row) for row in rows]


def _logprobs_of(logits: Tensor, row: list[int]) -> Tensor:
    """Of a row's tokens but the first, [T - 1], under the logits [T, V] behind each."""
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(row[1:], device=logits.device)[:, None])[:, 0]


def _plain_scores(model: Any, rows: list[list[int]]) -> list[Tensor]:
    return [_plain_logits(model, row)[:1] for row in rows]


def _plain_states(model: Any, rows: list[list[int]]) -> list[Tensor]:
    found = []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        found.append(model.base_model(input_ids=tokens, **plain_arguments(model.base_model, tokens)).last_hidden_state)
    return [states.flatten() for states in found]
