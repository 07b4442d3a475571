"""Where chatsmith keeps what it can make again."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Of prepared data and compiled code; whoever deletes it loses time and nothing else."""
    chosen = os.environ.get("CHATSMITH_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "chatsmith"
    return Path(chosen or default).expanduser()
