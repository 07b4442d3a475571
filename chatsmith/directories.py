"""Where chatsmith keeps what it can make again."""

import errno
import os
from pathlib import Path


def cache_directory() -> Path:
    """Of prepared data and compiled code; whoever deletes it loses time and nothing else.

    Raises:
        FileNotFoundError: if this user has no home directory, as in some containers, and no other one is named.
    """
    chosen = os.environ.get("CHATSMITH_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "chatsmith"
    try:
        return Path(chosen or default).expanduser()
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "there is no home directory") from None
