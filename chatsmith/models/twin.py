"""A small twin of a model: the same class and kinds of layers, few of them, narrow, with short windows and large random
weights. How a model computes is tried on it, cheaply and where differences are large.

The names of settings differ between architectures, so they are changed by their size and by what their names have in
common. A wrong guess costs time, not soundness: a twin that cannot be built, does not compute, or lacks a kind of layer
is made larger, up to the model itself.
"""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

VOCABULARY = 256
WINDOW = 12  # tokens that local attention sees
TURN = 48  # tokens of a row from which on rotations may change
CONTEXT = 128  # tokens of the longest row
HEAD = 16  # width of a head
EXPERTS = 32
LARGEST = 100_000_000  # weights
# Kinds of whole numbers, by name. What counts heads is divided by another factor than what is as wide as they are.
_TURN = re.compile(r"original_max_position|^max_position_embeddings$")
_CONTEXT = re.compile(r"max_position|n_positions|n_ctx|max_seq|max_length|max_target")
_WINDOW = re.compile(r"window|local_attention|attention_chunk")
_HEADS = re.compile(r"^(num_attention_heads|num_key_value_heads|num_heads|n_heads?)$")
_OF_HEADS = re.compile(r"head|rot|rank|state|kernel|rope")
_COUNT = re.compile(
    r"(^|_)(num|n|top|topk|layers?|seed|types?)(_|$)|token|conv|pattern|bucket|interval|period|offset|every"
)
_WIDTH = re.compile(r"embd|inner")  # although their names begin with n_

# by how much: (first layers that show all kinds or all, narrower heads, fewer heads, all parts or text alone)
_SIZES = (
    (True, True, True, True),
    (True, True, True, False),
    (True, True, False, True),
    (True, True, False, False),
    (False, True, False, True),
    (True, False, False, True),
)


def twin(model: Any, *, long: bool) -> Any:
    """The smallest model like this one that can be built and computes; it is only looked at.

    Args:
        long: rows may be longer than what rotations change at.
    Returns:
        a model of the same class in fp32 on the same device, or the model itself where none can be built.
    """
    kinds = layer_kinds(model)
    return smallest(type(model), model.config, kinds, model.device, long=long) or model


def smallest(of: Any, config: Any, kinds: Sequence[str], device: torch.device, *, long: bool) -> Any:
    """A model of class `of` with all these kinds of layers, or None. See `twin`."""
    for few, narrow, fewer_heads, all_parts in _SIZES:
        if not all_parts and len(parts_of(config)) == 1:
            continue
        layers = _depth_of(kinds) if few else None
        try:
            how = {"narrow": narrow, "fewer_heads": fewer_heads, "all_parts": all_parts}
            settings = small(config, layers=layers, long=long, **how)
            options = {"dtype": torch.float32, "attn_implementation": config._attn_implementation}
            with torch.device("meta"):
                plan = of._from_config(settings, **options)
            if set(layer_kinds(plan)) != set(kinds) or sum(p.numel() for p in plan.parameters()) > LARGEST:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = of._from_config(settings, **options).eval().requires_grad_(False).to(device)
            enlarge(model)
            if _computes(model):
                return model
        except Exception:  # whatever foreign code raises: the next one is larger
            continue
    return None


def small(config: Any, *, layers: int | None, narrow: bool, fewer_heads: bool, all_parts: bool, long: bool) -> Any:
    """A copy of a configuration, smaller.

    Args:
        layers: how many of the first; None: all.
        narrow, fewer_heads: divide the widths of heads, and their numbers.
        all_parts: also those that text never enters, such as a vision tower.
        long: short rows are followed by long ones at which rotations change.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for part in parts_of(config) if all_parts else [text]:
        kept = layers if part is text else 2
        depth = setting(part, "num_hidden_layers")
        width, heads = _narrower(part) if narrow else 1, _fewer(part) if fewer_heads else 1
        for owner, name, value in list(_settings(part)):
            changed = _smaller(str(name), value, width=width, heads=heads, long=long)
            if kept and isinstance(value, (list, tuple)) and len(value) == depth:
                changed = changed[:kept]
            if changed != value:
                owner[name] = changed  # not by setattr: what is checked then may not hold before all are changed
        if kept and depth and kept < depth:
            part.num_hidden_layers = kept
    return config


def parts_of(config: Any) -> list[Any]:
    """A configuration and those in it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for each in inner for part in parts_of(each))]


def layer_kinds(model: Any) -> list[str]:
    """What each layer consists of, in the stack that is as deep as the model or else the deepest; layers of one kind
    differ in weights and number only."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    depth = setting(model.config.get_text_config(), "num_hidden_layers")
    stacks = [stack for stack in stacks if len(stack) == depth] or stacks
    if not stacks:
        return [""]
    return [
        repr([(path, type(part).__name__, _traits(part)) for path, part in layer.named_modules()])
        for layer in max(stacks, key=len)
    ]


def _traits(module: nn.Module) -> list[tuple[str, Any]]:
    """Switches and names, and whether there is a window; other numbers are sizes, or count layers."""
    public = [(name, value) for name, value in sorted(vars(module).items()) if name[0] != "_" and name != "training"]
    switches = [(name, value) for name, value in public if isinstance(value, (bool, str))]
    return switches + [(name, True) for name, value in public if "window" in name and value is not None]


def _depth_of(kinds: Sequence[str]) -> int:
    """How many first layers hold all kinds, at least two."""
    return max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])


def setting(config: Any, name: str) -> Any:
    """A setting of a configuration; None where it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # whatever foreign code raises
        return None


def _narrower(text: Any) -> int:
    """By which widths are divided, so that those of heads come near to `HEAD`."""
    width, heads, whole = (setting(text, name) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    if not isinstance(width, int):
        width = whole // heads if isinstance(heads, int) and isinstance(whole, int) and heads else 4 * HEAD
    factor = 1
    while width % (2 * factor) == 0 and width // (2 * factor) >= HEAD:
        factor *= 2
    return factor


def _fewer(text: Any) -> int:
    """By which numbers of heads are divided, so that as many share keys as before, and two groups are left."""
    heads = setting(text, "num_attention_heads")
    groups = setting(text, "num_key_value_heads") or heads
    factor = 1
    while isinstance(groups, int) and groups % (2 * factor) == 0 and groups // (2 * factor) >= 2:
        factor *= 2
    return factor


def _settings(owner: Any) -> Iterator[tuple[Any, str, Any]]:
    """(table, name, value) of all settings, those of inner tables too."""
    table = owner if isinstance(owner, dict) else vars(owner)
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _settings(value)
        elif not str(name).startswith("_"):
            yield table, name, value


def _smaller(name: str, value: Any, *, width: int, heads: int, long: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_smaller(name, x, width=width, heads=heads, long=long) for x in value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name.endswith("token_id") or name == "padding_idx":
        return value % VOCABULARY
    if "vocab" in name:
        return min(value, VOCABULARY)
    if _TURN.search(name) and long:
        return min(value, TURN)
    if _CONTEXT.search(name):
        return CONTEXT
    if _WINDOW.search(name) and "layer" not in name and "pattern" not in name:
        return min(value, WINDOW)
    if name.endswith("experts"):
        return value if value <= EXPERTS or value % EXPERTS else EXPERTS
    if _HEADS.search(name):
        return value // heads if value % heads == 0 else value
    factor = width if _OF_HEADS.search(name) else width * heads
    if _COUNT.search(name) and not _WIDTH.search(name):
        return value
    return value // factor if value >= max(32, 4 * factor) and value % factor == 0 else value


@torch.no_grad()
def enlarge(model: Any) -> None:
    """Random weights with which states are about 1 and logits about 10 in size, norms and biases too."""
    noise = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    head = model.get_output_embeddings()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for number, weight in enumerate(model.parameters()):
        count = weight.numel()
        values = noise.roll(997 * number).repeat(-(-count // len(noise)))[:count].view_as(weight).to(weight.device)
        if head is not None and weight is head.weight:
            weight.copy_(values * (10 / math.sqrt(weight.shape[-1])))
        elif id(weight) in embeddings:
            weight.copy_(values)
        elif weight.dim() > 1:
            weight.copy_(values * (1 / math.sqrt(weight.shape[-1])))
        else:
            weight.add_(values * 0.2)


@torch.no_grad()
def _computes(model: Any) -> bool:
    tokens = torch.arange(3, 11, device=model.device)[None]
    output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    states: Tensor = output[0]
    return bool(states.isfinite().all())
