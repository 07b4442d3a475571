"""Where a model is: a directory, or an id of the Hugging Face hub. What is plainly neither is refused at once."""

from pathlib import Path

from chatsmith.errors import ModelError


def check_location(location: str) -> None:
    """Raises:
    ModelError: if `location` is a directory without a model, or a path where nothing is.
    """
    path = Path(location)
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelError(
            f"{location}: no model here, config.json is missing. Give a directory made by save_pretrained."
        )
    if not path.exists() and (location.startswith((".", "/", "~")) or location.count("/") > 1):
        raise ModelError(
            f"{location}: no such directory. Give a model directory, or a hub id such as facebook/opt-125m."
        )
