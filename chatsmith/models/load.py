"""Loading and saving: every artefact is a complete Hugging Face directory.

Weights are read from safetensors, or from a `.bin` that transformers opens with `weights_only=True`. Code that comes
with a model is never executed. Dropout is off everywhere: modules stay in eval mode, which only switches dropout off.
"""

import copy
import errno
import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
import transformers
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from chatsmith.data.chat import oddities, prepare_tokenizer, stop_ids
from chatsmith.data.control import control_of
from chatsmith.errors import ForeignError, ModelError, foreign
from chatsmith.files.bounds import bounded
from chatsmith.files.received import LONGEST_JSON, is_stored_plainly, parse_json, read_bytes, read_json
from chatsmith.files.writing import FreshDirectory, discard, scratch
from chatsmith.machine import out_of_memory, refusal
from chatsmith.models import lm
from chatsmith.models.head import compute_head_in_single_precision
from chatsmith.models.location import check_location
from chatsmith.models.twin import parts_of
from chatsmith.models.way import way_of
from chatsmith.screen.text import quoted

MOST_TOKENS = 1 << 31  # ids are 32-bit numbers here
_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_TABLES = 256 << 20  # bytes that are computed and not stored, such as a mask of 2,048 positions in each of 24 layers
_savable: set[tuple[str, str]] = set()  # location and templates of tokenizers that could be saved before

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a model directory or hub id, with a pad token and a chat template.

    Raises:
        ModelError: if there is none, or one that cannot be used or saved.
    """
    tokenizer = _raw_tokenizer(location)
    with _loading(location):
        prepare_tokenizer(tokenizer, location)
        _ = control_of(tokenizer).wrap  # what decoding must know is found out now
    _check_saving(tokenizer, location)
    return tokenizer


def _check_saving(tokenizer: Any, location: str) -> None:
    """Refuse what could not be saved after a stage has trained, or only outside of its directory."""
    with _loading(location):
        _check_keys(type(tokenizer), tokenizer.init_kwargs, location, "tokenizer_config.json")
    templates = tokenizer.chat_template
    if (location, str(templates)) in _savable:
        return
    for name in templates if isinstance(templates, dict) else ():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,100}", name):
            raise ModelError(
                f"{location}: a chat template there is called {ascii(name)[:120]}, and a template is saved under its "
                "name. Rename it with letters and digits, or leave it out."
            )
    _try_saving(partial(_save_tokenizer, tokenizer), f"{location}: its tokenizer", "it")
    _savable.add((location, str(templates)))


def _try_saving(fill: Callable[[FreshDirectory], None], what: str, where: str) -> None:
    """Save into a directory that goes at once. What the disk refuses is not the model's fault, and no matter yet.

    Raises:
        ModelError: that `what` cannot be saved, to be mended in `where`.
    """
    try:
        folder = scratch()
    except OSError:  # no room for temporary files here
        return
    try:
        with foreign():
            fill(folder)
    except ForeignError as error:
        reason = refusal(error)
        if reason is None or reason.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{what} cannot be saved, so no stage could be: {said.rstrip('.')}. Mend {where}, or give another "
                "model."
            ) from error
    finally:
        discard(folder)


def _save_tokenizer(tokenizer: Any, directory: FreshDirectory) -> None:
    tokenizer.save_pretrained(directory)


def _check_keys(kind: type, held: Any, location: str, file: str) -> None:
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


def _check_model_saving(model: Any, location: str) -> None:
    """Refuse a model whose configuration could not be saved after a stage has trained. Its weights are left out."""
    config, generation = model.config, getattr(model, "generation_config", None)

    def fill(directory: FreshDirectory) -> None:
        model.config = copy.deepcopy(config)  # saving changes it
        if generation is not None:
            _check_keys(type(generation), vars(generation), location, "generation_config.json")
            model.generation_config = _own_generation_config(model, {})
        model.save_pretrained(directory, state_dict={})

    try:
        _try_saving(fill, f"{location}: its configuration", "config.json")
    finally:
        model.config = config
        if generation is not None:
            model.generation_config = generation


def tokenizer_oddities(location: str) -> list[str]:
    """What is questionable in the tokenizer of a model directory or hub id, in words."""
    tokenizer = _raw_tokenizer(location)
    with _loading(location):
        return oddities(tokenizer)


def _raw_tokenizer(location: str) -> Any:
    check_location(location)
    _check_config_file(location)
    if Path(location).is_dir() and not any(
        (Path(location) / name).exists()
        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    ):
        raise ModelError(
            f"{location}: no tokenizer here. Save one beside the weights: tokenizer.save_pretrained({location!r})."
        )
    return _from_hub_or_disk(AutoTokenizer, location)


def load_stop_ids(location: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's EOS, and those the model's generation config names."""
    generation = None
    if (Path(location) / "generation_config.json").is_file():
        with _loading(location):
            generation = GenerationConfig.from_pretrained(location)
    elif not Path(location).is_dir():
        with _loading(location), suppress(OSError):  # many models come without one
            generation = GenerationConfig.from_pretrained(location)
    with _loading(location):
        if generation is not None:
            _check_keys(GenerationConfig, vars(generation), location, "generation_config.json")
        stops = stop_ids(tokenizer, generation)
        wrong = [id for id in stops if type(id) is not int or not 0 <= id < MOST_TOKENS]
    if wrong:
        raise ModelError(
            f"{location}: its generation_config.json names {ascii(wrong[0])[:60]} as a token that ends an answer, "
            "which is no token's number. Mend eos_token_id there."
        )
    return stops


def load_actor(location: str, tokenizer: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A causal language model whose embeddings hold every token of `tokenizer`.

    Raises:
        ModelError: if there is none, or one that cannot be trained or sampled here.
    """
    config = _config(location)
    with _loading(location):
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{location}: {config.model_type} is an encoder-decoder; chatsmith trains decoders only.")
        if any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ()):
            raise ModelError(
                f"{location}: a reward model, which scores answers and does not speak. Give a language model."
            )
        model = _fit(_weights(AutoModelForCausalLM, location, config, dtype=dtype), tokenizer, device, location)
        compute_head_in_single_precision(model)
        with _named(location):
            way_of(model)  # a model that cannot be computed is refused now, not when a stage has trained it
            lm.check_weights(model)
        _check_model_saving(model, location)
    return model


def load_reward_model(location: str, tokenizer: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A trained reward model: `...ForSequenceClassification` with one label."""
    config = _config(location)
    with _loading(location):
        architecture = str((config.architectures or [""])[0])
        if not architecture.endswith("ForSequenceClassification") or config.num_labels != 1:
            raise ModelError(
                f"{location}: not a reward model (it holds {architecture or 'no architecture'} with "
                f"{config.num_labels} labels). --reward takes a ...ForSequenceClassification directory with one label, "
                "such as RUN/reward/model; to train one from this model, pass it as --reward-model."
            )
        model = _weights(AutoModelForSequenceClassification, location, config, dtype=dtype)
        return _score_model(model, tokenizer, device, location)


def check_reward_base(location: str) -> None:
    """Refuse, before any work, a base whose architecture transformers cannot give a score head.

    Raises:
        ModelError: if there is no `...ForSequenceClassification` for it.
    """
    config = _config(location)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{location}: transformers has no {config.model_type} model with a score head. Give another --reward-model."
        )
    config.num_labels = 1
    with _loading(location):
        plan = _plan(AutoModelForSequenceClassification, config)
        _check_score_head(plan, location)
        _check_model_saving(plan, location)


def new_reward_model(location: str, tokenizer: Any, *, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The body of a language model under a fresh scalar head without bias, drawn with deviation 1/sqrt(width + 1)."""
    with _loading(location):
        base, new = _config(location), "score.weight"
        model = _weights(AutoModelForSequenceClassification, location, base, dtype=dtype, num_labels=1, new=new)
        _check_score_head(model, location)
        generator = torch.Generator().manual_seed(seed)
        shape = model.score.weight.shape
        model.score.weight.data = (torch.randn(shape, generator=generator) / math.sqrt(shape[1] + 1)).to(dtype)
        return _score_model(model, tokenizer, device, location)


def _check_score_head(model: Any, location: str) -> None:
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ModelError(
            f"{location}: {type(model).__name__} reads its scores in another way than through one linear layer "
            '"score" without bias. Give another --reward-model.'
        )


def _score_model(model: Any, tokenizer: Any, device: torch.device, location: str) -> Any:
    _check_score_head(model, location)
    model = _fit(model, tokenizer, device, location)
    with _named(location):
        way_of(model)
    return model


def save_model(model: Any, tokenizer: Any, directory: FreshDirectory, *, stops: Sequence[int], card: str) -> None:
    """Weights (safetensors), tokenizer, chat template, generation config and README into `directory`.

    The config notes which vocabulary and chat template the weights were trained with, for `_fit` to compare.
    """
    try:
        with foreign():
            for key, value in _fingerprints(tokenizer).items():
                setattr(model.config, key, value)
            generation = _generation_config(model, tokenizer, stops)
            if model.can_generate():
                model.generation_config = generation
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            generation.save_pretrained(directory)  # of reward models too: they must know where an answer ends
    except ForeignError as error:
        cause = error.__cause__
        if isinstance(cause, Exception) and (refusal(cause) is not None or out_of_memory(cause)):
            raise cause from None
        said = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the model cannot be saved: {said.rstrip('.')}. Something in the files of the model that it was made from "
            "is not as transformers writes it: give another one."
        ) from error
    (directory / "README.md").write_text(card, encoding="utf-8")


def was_saved_here(directory: Path) -> bool:
    """Whether `save_model` made the model in a directory."""
    try:
        config = read_json(directory / "config.json", refuse=ModelError)
    except (FileNotFoundError, ModelError):
        return False
    return isinstance(config, dict) and "chat_template_sha256" in config


def _generation_config(model: Any, tokenizer: Any, stops: Sequence[int]) -> GenerationConfig:
    """The base's own, with all that it forbids or prefers, but for what is decided here."""
    return _own_generation_config(
        model,
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": list(stops),
            "pad_token_id": tokenizer.pad_token_id,
            "do_sample": True,
        },
    )


def _own_generation_config(model: Any, decided: dict[str, Any]) -> GenerationConfig:
    config = copy.deepcopy(getattr(model, "generation_config", None) or GenerationConfig())
    config._from_model_config = False  # from here on it stands for itself
    try:
        config.update(**decided)
        config.validate(strict=True)
    except ValueError:  # transformers could not save the base's either
        config = GenerationConfig(**decided)
    return config


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers turn conversations into the same tokens."""
    return _fingerprints(one) == _fingerprints(other) and bool(one.eos_token_id == other.eos_token_id)


def context_length(model: Any) -> int | None:
    """Longest sequence in tokens that the model was built for, or None where it sets no limit (ALiBi)."""
    limits = [limit for limit in (_context(model.config), way_of(model).limit) if limit is not None]
    return min(limits, default=None)


def declared_context(location: str) -> int | None:
    """The same, of a model directory or hub id, without loading its weights."""
    return _context(_config(location))


def _context(config: Any) -> int | None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def _fit(model: Any, tokenizer: Any, device: torch.device, origin: str) -> Any:
    """Room for every token of the tokenizer, the tokenizer's special ids in the config, dropout off.

    Raises:
        ModelError: if the weights were trained with another vocabulary or chat template.
    """
    for key, value in _fingerprints(tokenizer).items():
        if getattr(model.config, key, value) != value:
            what = key.removesuffix("_sha256").replace("_", " ")
            raise ModelError(
                f"{origin}: the {what} in this directory is not the one that its weights were trained with, so the "
                f'model would read gibberish. Put the old one back; if the change is meant, delete "{key}" from '
                "config.json."
            )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng(devices=[]):  # new rows are drawn: the same ones whenever the model is loaded
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval()


def _fingerprints(tokenizer: Any) -> dict[str, str]:
    """SHA-256 of what turns conversations into tokens, under the names that a saved model's config has for them."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    template = template.replace("\r\n", "\n")  # as files are read back
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return {
        "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
    }


def _config(location: str) -> Any:
    """Raises:
    ModelError: if there is none, or one that names code of others or a context that is no number.
    """
    check_location(location)
    _check_config_file(location)
    config = _from_hub_or_disk(AutoConfig, location)
    with _loading(location):
        for part in parts_of(config):
            _check_keys(type(part), vars(part), location, "config.json")
        _context(config)
        for part in parts_of(config):
            for what in ("_attn_implementation", "_experts_implementation"):
                if "/" in str(getattr(part, what, "")):
                    raise ModelError(
                        f"{location}: config.json names code of somebody else that the model is to be computed by, "
                        f"{ascii(getattr(part, what))[:120]}. Take {what.removeprefix('_')} out."
                    )
    return config


def _check_config_file(location: str) -> None:
    """The same as of a configuration that is loaded, in whose loading such values already stand in the way."""
    file = Path(os.path.realpath(Path(location) / "config.json"))
    if not file.is_file():
        return
    try:
        held = parse_json(read_bytes(file, limit=LONGEST_JSON, refuse=ModelError))
    except ValueError:  # what is wrong with it is said when it is loaded
        return
    tables = [held] if isinstance(held, dict) else []
    for table in tables:
        _check_keys(PreTrainedConfig, table, location, "config.json")
        tables += [part for key, part in table.items() if key.endswith("_config") and isinstance(part, dict)]


def _plan(auto_class: Any, config: Any) -> Any:
    """The model that a configuration describes, without weights."""
    with bounded(), torch.device("meta"):
        return auto_class.from_config(config)


def _check_size(auto_class: Any, location: str, config: Any) -> None:
    """Refuse a configuration of a far larger model than the files there can hold, before it is given memory."""
    if not Path(location).is_dir():
        return
    plan = _plan(auto_class, config)
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


def _weights(auto_class: Any, location: str, config: Any, *, new: str = "", **options: Any) -> Any:
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
    with _loading(location):
        _check_size(auto_class, location, config)
    model, report = _from_hub_or_disk(auto_class, location, output_loading_info=True, **options)
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


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)


def _prefix_hint(missing: Sequence[str], left: Sequence[str]) -> str:
    """What a wrapper (torch.compile, DataParallel, a trainer) has put before all names."""
    for name in missing[:1]:
        for key in left:
            if key.endswith(f".{name}"):
                return f'Names there begin with "{key.removesuffix(name)}": it was saved from inside a wrapper. '
    return ""


def _from_hub_or_disk(auto_class: Any, location: str, **options: Any) -> Any:
    with _loading(location):
        # said explicitly: undecided, transformers would ask at the terminal
        return auto_class.from_pretrained(location, trust_remote_code=False, **options)


@contextmanager
def _named(location: str) -> Iterator[None]:
    """A refusal inside names the model's place."""
    try:
        yield
    except ModelError as error:
        error.args = (f"{location}: {error}",)
        raise


@contextmanager
def _loading(location: str) -> Iterator[None]:
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
