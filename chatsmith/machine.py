"""What the machine refuses: a full disk, missing rights, too little memory. These are no bugs, and have a remedy.

The system says what is wrong by a number (errno), which Python keeps in an OSError and libraries in Rust write into
their message. Numbers that only a bug brings about, such as that of a closed file, are not among those here.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator

REMEDIES = {
    errno.ENOSPC: "Free some space there, or choose another place",
    errno.EDQUOT: "Free some of your quota there, or choose another place",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another file system",
    errno.EROFS: "It can only be read there: choose another place, or mount it for writing",
    errno.EACCES: "Mend the permissions, of the directories above it too, or choose another place",
    errno.EPERM: "Mend the permissions, of the directories above it too, or choose another place",
    errno.EIO: "The disk or the network drive is at fault: see what the system's log says, or choose another place",
    errno.ESTALE: "The network drive is not what it was: mount it anew, or choose another place",
    errno.ETIMEDOUT: "The network does not answer, or a drive on it: try again later, or choose another place",
    errno.ENODEV: "The disk or the network drive is gone: mount it anew, or choose another place",
    errno.ENXIO: "A pipe or device stands there: choose another path",
    errno.EBUSY: "Something else is using it: wait for that, or choose another place",
    errno.ETXTBSY: "Something else is using it: wait for that, or choose another place",
    errno.ENOLCK: "This file system has no locks, which keep two commands apart: choose a place on another one",
    errno.EOPNOTSUPP: "This file system cannot do it: choose a place on another one",
    errno.ENOSYS: "This file system cannot do it: choose a place on another one",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOENT: "Check the path, and that nobody else moves or deletes it",
    errno.EISDIR: "A directory stands where a file belongs: move it away, or choose another path",
    errno.ENOTDIR: "A file stands where a directory belongs: move it away, or choose another path",
    errno.EEXIST: "Something else stands there: move it away, or choose another path",
    errno.ENOTEMPTY: "Something else stands there: move it away, or choose another path",
    errno.EXDEV: "Directories of one run lie on several file systems: put them on one",
    errno.ELOOP: "Links lead in a circle, or stand where a file belongs: mend them, or choose another path",
    errno.EMLINK: "This directory is full: choose another place",
    errno.EMFILE: "Raise the limit on open files, as in: ulimit -n 8192",
    errno.ENFILE: "The system as a whole has too many files open: close other programs",
    errno.EAGAIN: "There are too many processes or threads: close other programs, or raise the limit (ulimit -u)",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)")  # as Rust's standard library ends what it says of the system


def refusal(error: BaseException) -> OSError | None:
    """The system's refusal that an exception is, reports in the words of Rust, or was raised from; None: a bug."""
    for each in _causes(error):
        if isinstance(each, OSError):
            number = each.errno
        elif isinstance(each, RuntimeError) and str(each) == "can't start new thread":
            number = errno.EAGAIN
        else:
            told = _OF_RUST.search(str(each))
            number = int(told[1]) if told else None
        if number in REMEDIES:
            return each if isinstance(each, OSError) else OSError(number, os.strerror(number))
    return None


def in_words(error: OSError) -> str:
    """What is wrong, and how to mend it."""
    remedy = REMEDIES.get(error.errno or 0, "Check the file and its permissions")
    return f"{error.strerror}. {remedy}"


def place(error: OSError) -> str:
    """The path that a refusal is about; empty if it does not say."""
    path = error.filename2 or error.filename
    return os.fsdecode(path) if isinstance(path, str | bytes) else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether torch, Python or the system could not get memory, on a GPU or on the CPU."""
    return any(map(_is_memory, _causes(error)))


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")  # where it is not loaded, none of its errors was raised
    if torch is None or not isinstance(error, RuntimeError):
        return False
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    # torch's allocator of the CPU, mmap of the system, the driver of CUDA, and its libraries
    return any(
        said in text
        for said in ("can't allocate memory", os.strerror(errno.ENOMEM), "CUDA error: out of memory", "_ALLOC_FAILED")
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from, on purpose; not those that it only came after."""
    while error is not None:
        yield error
        error = error.__cause__
