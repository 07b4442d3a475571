"""What lies at a model's place, its configuration and its weights: read, or refused with the reason.

Weights are read from safetensors, or from a `.bin` that transformers opens with `weights_only=True`. Code that comes
with a model is never executed, and nothing takes the place of a part of transformers.
"""

import errno
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from chatsmith.errors import ForeignError, ModelError, foreign
from chatsmith.files.bounds import bounded
from chatsmith.files.received import LONGEST_JSON, is_stored_plainly, parse_json, read_bytes, read_json
from chatsmith.machine import out_of_memory
from chatsmith.models.location import check_location
from chatsmith.models.twin import parts_of
from chatsmith.screen.text import quoted

_TABLES = 256 << 20  # bytes that are computed and not stored, such as a mask of 2,048 positions in each of 24 layers
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file


def read_config(location: str) -> Any:
    """The configuration of a model directory or hub id.

    Raises:
        ModelError: if there is none, or one that names code of others or a context that is no number.
    """
    check_location(location)
    check_config_file(location)
    config = from_hub_or_disk(AutoConfig, location)
    with loading(location):
        for part in parts_of(config):
            check_keys(type(part), vars(part), location, "config.json")
        context_of(config)
        for part in parts_of(config):
            for what in ("_attn_implementation", "_experts_implementation"):
                if "/" in str(getattr(part, what, "")):
                    raise ModelError(
                        f"{location}: config.json names code of somebody else that the model is to be computed by, "
                        f"{ascii(getattr(part, what))[:120]}. Take {what.removeprefix('_')} out."
                    )
    return config


def context_of(config: Any) -> int | None:
    """Longest sequence in tokens that a configuration allows; None where it sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def check_config_file(location: str) -> None:
    """`check_keys` of config.json as it lies there, for in loading it such values already stand in the way."""
    file = Path(os.path.realpath(Path(location) / "config.json"))
    if not file.is_file():
        return
    try:
        held = parse_json(read_bytes(file, limit=LONGEST_JSON, refuse=ModelError))
    except ValueError:  # what is wrong with it is said when it is loaded
        return
    tables = [held] if isinstance(held, dict) else []
    for table in tables:
        check_keys(PreTrainedConfig, table, location, "config.json")
        tables += [part for key, part in table.items() if key.endswith("_config") and isinstance(part, dict)]


def check_keys(kind: type, held: Any, location: str, file: str) -> None:
    """Refuse values that would take the place of transformers' own functions and private switches."""
    settings = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    for key in held:
        its = inspect.getattr_static(kind, key, None)
        function = (callable(its) and not isinstance(its, type)) or isinstance(its, classmethod | staticmethod)
        private = key.startswith("_") and hasattr(kind, key) and not isinstance(its, property) and key not in settings
        if function or private or key.startswith("__"):
            raise ModelError(
                f"{location}: {quoted(key)} in {file} would replace a part of transformers, which is no setting of a "
                "model. Take it out."
            )


def planned(auto_class: Any, config: Any) -> Any:
    """The model that a configuration describes, without weights."""
    with bounded(), torch.device("meta"):
        return auto_class.from_config(config)


def read_weights(auto_class: Any, location: str, config: Any, *, new: str = "", **options: Any) -> Any:
    """A model all of whose weights are in the checkpoint, and whose checkpoint is all in the model.

    Args:
        config: what `_config` gave.
        new: a weight that need not be there; then what stands behind the body of another model may be left over.
    Raises:
        ModelError: naming what is missing and what is left over.
    """
    directory = Path(location)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ModelError(
            f"{location}: its weights are quantised ({method}), and only whole ones (float32, bfloat16, float16) can "
            "be trained and sampled here. Give the model that it was made from."
        )
    if (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"{location}: an adapter (adapter_config.json) lies beside the weights and would be ignored. Merge it into "
            "them (merge_and_unload in peft), or move it elsewhere."
        )
    if "num_labels" in options:
        config.num_labels = options["num_labels"]
    with loading(location):
        _check_size(auto_class, location, config)
    model, report = from_hub_or_disk(auto_class, location, output_loading_info=True, **options)
    body = f"{model.base_model_prefix}."
    missing = sorted(set(report["missing_keys"]) - {new})
    left = sorted(key for key in report["unexpected_keys"] if not new or missing or key.startswith(body))
    if missing or left:
        raise ModelError(
            f"{location}: the weights there are not those of {type(model).__name__}. "
            + (f"Missing: {_some(missing)}. " if missing else "")
            + (f"Left over: {_some(left)}. " if left else "")
            + _prefix_hint(missing, left)
            + "Save the model again with save_pretrained, or give another one."
        )
    return model


def _check_size(auto_class: Any, location: str, config: Any) -> None:
    """Refuse a configuration of a far larger model than the files there can hold, before it is given memory."""
    if not Path(location).is_dir():
        return
    plan = planned(auto_class, config)
    weights = sum(weight.numel() for weight in plan.parameters())
    files = _weight_files(Path(location), config)
    for file in files:
        if is_zipfile(file) and not is_stored_plainly(file):
            raise ModelError(
                f"{quoted(file)}: packed otherwise than torch packs it, so it was not opened. Use a safetensors "
                "version of it."
            )
    stored = sum(map(_bytes_in, files))
    if weights > 2 * stored + (1 << 20):  # a weight takes two bytes or four
        broken = _broken_file(Path(location))
        if broken:
            raise ValueError(broken)
        raise ModelError(
            f"{location}: config.json describes a model of {weights:,} weights, and its files hold {stored:,} bytes. "
            "Is the download whole?"
        )
    held = {id(x): x for part in plan.modules() for x in (*vars(part).values(), *part.buffers(recurse=False))}
    tables = sum(x.nbytes for x in held.values() if isinstance(x, torch.Tensor))
    if tables > stored + _TABLES:
        raise ModelError(
            f"{location}: config.json describes a model whose tables of positions and masks take {tables:,} bytes, "
            f"beside weights of {stored:,} bytes. Mend its number of positions."
        )


def _weight_files(directory: Path, config: Any) -> list[Path]:
    """Those that transformers opens: of what is there, the first."""
    named = getattr(config, "transformers_weights", None)
    for name in (named, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        file = directory / str(name)
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return [file]
        held = read_json(Path(os.path.realpath(file)), refuse=ModelError)
        names = held.get("weight_map") if isinstance(held, dict) else None
        parts = dict.fromkeys(str(part) for part in names.values()) if isinstance(names, dict) else ()
        return [directory / part for part in parts if (directory / part).is_file()]
    return []


def _bytes_in(file: Path) -> int:
    """How long it is without its holes, of which a file of any length can consist."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        held = end = 0
        while end < size:
            try:
                start = os.lseek(opened.fileno(), end, os.SEEK_DATA)
                end = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to its end
                    return held
                return size  # this file system knows of no holes
            held += end - start
    return held


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)


def _prefix_hint(missing: Sequence[str], left: Sequence[str]) -> str:
    """What a wrapper (torch.compile, DataParallel, a trainer) has put before all names."""
    for name in missing[:1]:
        for key in left:
            if key.endswith(f".{name}"):
                return f'Names there begin with "{key.removesuffix(name)}": it was saved from inside a wrapper. '
    return ""


def from_hub_or_disk(auto_class: Any, location: str, **options: Any) -> Any:
    with loading(location):
        # said explicitly: undecided, transformers would ask at the terminal
        return auto_class.from_pretrained(location, trust_remote_code=False, **options)


@contextmanager
def named(location: str) -> Iterator[None]:
    """A refusal inside names the model's place."""
    try:
        yield
    except ModelError as error:
        error.args = (f"{location}: {error}",)
        raise


@contextmanager
def loading(location: str) -> Iterator[None]:
    """Whatever others' code raises at what lies in `location` is a fault of what lies there."""
    try:
        with foreign():
            yield
    except ForeignError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and out_of_memory(cause):
            raise cause from None
        if isinstance(cause, UnpicklingError):
            raise ModelError(
                f"{location}: its .bin file holds more than tensors and was not opened. Use a safetensors version of "
                "it."
            ) from error
        said = _broken_file(Path(location)) or " ".join(str(error).split())[:300]
        raise ModelError(
            f"{location}: cannot be loaded: {said.rstrip('.')}. Give a local model directory, or a hub id where there "
            "is a network."
        ) from error


def _broken_file(directory: Path) -> str:
    """Which file there is not what its name says, if that is seen easily."""
    for path in sorted(directory.glob("[!.]*")) if directory.is_dir() else ():
        if path.suffix not in (".safetensors", ".bin", ".json", ".model") or not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(64)
            header = int.from_bytes(start[:8], "little")
            table_text = start[8:] + file.read(min(header, _LONGEST_HEADER)) if path.suffix == ".safetensors" else b""
        if start.startswith(b"version https://git-lfs"):
            return f"{quoted(path.name)} is a pointer of git-lfs and not the file itself: run `git lfs pull` there."
        if path.suffix == ".safetensors":
            size = path.stat().st_size
            try:
                table = json.loads(table_text[:header])
                end = max(part["data_offsets"][1] for name, part in table.items() if name != "__metadata__")
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # damaged
                end = size
            if 8 + header + end > size:
                return f"{quoted(path.name)} is cut off or damaged ({size} bytes): download it again."
    return ""
