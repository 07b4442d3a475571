"""Loading and saving: every artefact is a complete Hugging Face directory.

How configuration and weights are read, and when they are refused, stands in `weights.py`. Dropout is off everywhere:
modules stay in eval mode, which only switches dropout off.
"""

import copy
import errno
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from chatsmith.data.chat import oddities, prepare_tokenizer, stop_ids
from chatsmith.data.control import control_of
from chatsmith.errors import ForeignError, ModelError, foreign
from chatsmith.files.received import read_json
from chatsmith.files.writing import FreshDirectory, discard, scratch
from chatsmith.machine import out_of_memory, refusal
from chatsmith.models import lm
from chatsmith.models.head import compute_head_in_single_precision
from chatsmith.models.location import check_location
from chatsmith.models.way import way_of
from chatsmith.models.weights import (
    check_config_file,
    check_keys,
    context_of,
    from_hub_or_disk,
    loading,
    named,
    planned,
    read_config,
    read_weights,
)

MOST_TOKENS = 1 << 31  # ids are 32-bit numbers here
_savable: set[tuple[str, str]] = set()  # location and templates of tokenizers that could be saved before

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a model directory or hub id, with a pad token and a chat template.

    Raises:
        ModelError: if there is none, or one that cannot be used or saved.
    """
    tokenizer = _raw_tokenizer(location)
    with loading(location):
        prepare_tokenizer(tokenizer, location)
        _ = control_of(tokenizer).wrap  # what decoding must know is found out now
    _check_saving(tokenizer, location)
    return tokenizer


def _check_saving(tokenizer: Any, location: str) -> None:
    """Refuse what could not be saved after a stage has trained, or only outside of its directory."""
    with loading(location):
        check_keys(type(tokenizer), tokenizer.init_kwargs, location, "tokenizer_config.json")
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


def _check_model_saving(model: Any, location: str) -> None:
    """Refuse a model whose configuration could not be saved after a stage has trained. Its weights are left out."""
    config, generation = model.config, getattr(model, "generation_config", None)

    def fill(directory: FreshDirectory) -> None:
        model.config = copy.deepcopy(config)  # saving changes it
        if generation is not None:
            check_keys(type(generation), vars(generation), location, "generation_config.json")
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
    with loading(location):
        return oddities(tokenizer)


def _raw_tokenizer(location: str) -> Any:
    check_location(location)
    check_config_file(location)
    if Path(location).is_dir() and not any(
        (Path(location) / name).exists()
        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    ):
        raise ModelError(
            f"{location}: no tokenizer here. Save one beside the weights: tokenizer.save_pretrained({location!r})."
        )
    return from_hub_or_disk(AutoTokenizer, location)


def load_stop_ids(location: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end an answer: the tokenizer's EOS, and those the model's generation config names."""
    generation = None
    if (Path(location) / "generation_config.json").is_file():
        with loading(location):
            generation = GenerationConfig.from_pretrained(location)
    elif not Path(location).is_dir():
        with loading(location), suppress(OSError):  # many models come without one
            generation = GenerationConfig.from_pretrained(location)
    with loading(location):
        if generation is not None:
            check_keys(GenerationConfig, vars(generation), location, "generation_config.json")
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
    config = read_config(location)
    with loading(location):
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{location}: {config.model_type} is an encoder-decoder; chatsmith trains decoders only.")
        if any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ()):
            raise ModelError(
                f"{location}: a reward model, which scores answers and does not speak. Give a language model."
            )
        model = _fit(read_weights(AutoModelForCausalLM, location, config, dtype=dtype), tokenizer, device, location)
        compute_head_in_single_precision(model)
        with named(location):
            way_of(model)  # a model that cannot be computed is refused now, not when a stage has trained it
            lm.check_weights(model)
        _check_model_saving(model, location)
    return model


def load_reward_model(location: str, tokenizer: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A trained reward model: `...ForSequenceClassification` with one label."""
    config = read_config(location)
    with loading(location):
        architecture = str((config.architectures or [""])[0])
        if not architecture.endswith("ForSequenceClassification") or config.num_labels != 1:
            raise ModelError(
                f"{location}: not a reward model (it holds {architecture or 'no architecture'} with "
                f"{config.num_labels} labels). --reward takes a ...ForSequenceClassification directory with one label, "
                "such as RUN/reward/model; to train one from this model, pass it as --reward-model."
            )
        model = read_weights(AutoModelForSequenceClassification, location, config, dtype=dtype)
        return _score_model(model, tokenizer, device, location)


def check_reward_base(location: str) -> None:
    """Refuse, before any work, a base whose architecture transformers cannot give a score head.

    Raises:
        ModelError: if there is no `...ForSequenceClassification` for it.
    """
    config = read_config(location)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{location}: transformers has no {config.model_type} model with a score head. Give another --reward-model."
        )
    config.num_labels = 1
    with loading(location):
        plan = planned(AutoModelForSequenceClassification, config)
        _check_score_head(plan, location)
        _check_model_saving(plan, location)


def new_reward_model(location: str, tokenizer: Any, *, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The body of a language model under a fresh scalar head without bias, drawn with deviation 1/sqrt(width + 1)."""
    with loading(location):
        base, new = read_config(location), "score.weight"
        model = read_weights(AutoModelForSequenceClassification, location, base, dtype=dtype, num_labels=1, new=new)
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
    with named(location):
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
    limits = [limit for limit in (context_of(model.config), way_of(model).limit) if limit is not None]
    return min(limits, default=None)


def declared_context(location: str) -> int | None:
    """Longest sequence of a model directory or hub id, as its configuration says."""
    return context_of(read_config(location))


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
