"""Where a model is: a directory, or an id of the Hugging Face hub. What is plainly neither is refused at once.

A directory is made by somebody, who may have written into it that files elsewhere belong to it. All of it is looked at
before transformers opens anything.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatsmith.errors import ModelError
from chatsmith.files.received import check_directory, is_inside, places_inside, read_json
from chatsmith.screen.text import quoted

_LONGEST = 128 << 20  # bytes of a file that is read as a whole; the vocabularies of 2026 have up to 40 MB
# what transformers opens under a name that it knows; what else lies there is opened only if one of these names it
_READ_WHOLE = re.compile(
    r"(.*config|tokenizer.*|special_tokens_map|added_tokens|chat_template|processor|.*vocab.*|merges|.*\.index|dict|emoji"
    r"|normalizer|word_.*|byte_maps)\.(json|txt)|.*\.(jinja|model|spm|tiktoken|codes|tokenizer)"
)
_NAMES_FILES = re.compile(r"(^|_)(files?|path|inputs|spm|vocab|merges|weights|weight_map)(_|$)")
_ONLY_KEPT = ("name_or_path", "_name_or_path", "special_tokens_map_file")  # where it came from; nothing is opened there
_WEIGHTS = (".safetensors", ".bin")
# in which transformers finds names of files
_INDEX = (
    *("tokenizer_config.json", "special_tokens_map.json", "config.json"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)


def check_location(location: str) -> None:
    """Raises:
    ModelError: if `location` is a directory without a model, or with more than a model, or a path where nothing is.
    """
    path = Path(location)
    if path.is_dir():
        check_directory(path, refuse=ModelError, links=True, hidden=False)
        if not (path / "config.json").exists():
            raise ModelError(
                f"{location}: no model here, config.json is missing. Give a directory made by save_pretrained."
            )
        _check_sizes(path)
        _check_names(path)
    if not path.exists() and (location.startswith((".", "/", "~")) or location.count("/") > 1):
        raise ModelError(
            f"{location}: no such directory. Give a model directory, or a hub id such as facebook/opt-125m."
        )


def _check_sizes(directory: Path) -> None:
    for file in (*directory.iterdir(), *directory.glob("*/*.jinja")):
        if _READ_WHOLE.fullmatch(file.name) and file.is_file():
            _check_length(file)


def _check_length(file: Path) -> None:
    if file.stat().st_size > _LONGEST:
        raise ModelError(
            f"{quoted(file)}: longer than {_LONGEST >> 20} MiB, which no such file of a model is. Move it away."
        )


def _check_names(directory: Path) -> None:
    """Refuse names of files that lie elsewhere and would be opened."""
    inside = places_inside(directory)
    for index in _INDEX:
        file = Path(os.path.realpath(directory / index))
        if not file.is_file():
            continue
        try:
            held = read_json(file, refuse=ModelError, limit=_LONGEST)
        except ModelError:  # whoever loads it says what is wrong with it
            continue
        for key, name in _named_files(held):
            for place in (directory / name, Path(name)):  # as it is, it counts from where the command was typed
                if (
                    os.path.exists(place)
                    and not os.path.isdir(place)
                    and not (place.is_file() and is_inside(place, inside))
                ):
                    raise ModelError(
                        f"{quoted(directory / index)}: {quoted(key)} names a file that is not in this directory, "
                        f"{quoted(name)}. Put it there, or take the name out."
                    )
                if place.is_file() and place.suffix not in _WEIGHTS:
                    _check_length(place)


def _named_files(held: Any) -> Iterator[tuple[str, str]]:
    """Key and text of what may be names of files at the top of a table."""
    for key, value in held.items() if isinstance(held, dict) else ():
        if key in _ONLY_KEPT or not _NAMES_FILES.search(key):
            continue
        several = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        yield from ((key, name) for name in dict.fromkeys(x for x in several if isinstance(x, str)))
