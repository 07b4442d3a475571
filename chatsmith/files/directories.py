"""Where chatsmith keeps what it can make again, and who else could have put something there."""

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from chatsmith.files.writing import make_own_directory


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


def own_cache() -> Path:
    """The cache directory behind its links, made if it is not there: what lies in it was put there by this user alone.

    Raises:
        OSError: if it cannot be made, or if others could have written in it, with the path and what to change.
    """
    cache = Path(os.path.realpath(cache_directory()))
    make_own_directory(cache)
    if not cache.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(cache))
    if not is_own(cache):
        raise PermissionError(
            errno.EACCES, "not yours alone (own it, and let nobody else write there: chmod go-w)", str(cache)
        )
    for above in cache.parents:
        if not _keeps_names(above):
            raise PermissionError(errno.EACCES, "others could put another directory in the cache's place", str(above))
    return cache


def is_own(path: Path) -> bool:
    """Whether a file or directory is this user's and nobody else may write it; a link or what is not there is not."""
    try:
        status = path.lstat()
    except OSError:
        return False
    kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kind and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _keeps_names(directory: Path) -> bool:
    """Whether nobody but this user and the system's can rename what this user owns in a directory."""
    status = directory.lstat()
    if status.st_uid not in (0, os.geteuid()):
        return False
    if status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022:
        return True
    return not status.st_mode & 0o002 and _is_private(status.st_gid)


def _is_private(group: int) -> bool:
    """Whether a group is this user's own, which many systems give to everybody, with a umask of 002."""
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return entry.gr_name == user.pw_name and user.pw_gid == group and set(entry.gr_mem) <= {user.pw_name}
