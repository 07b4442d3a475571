"""Attention of a decoding step, where every row has one query, on processors with AVX2.

It is computed by attention.cpp, which the machine's C++ compiler compiles when it is first needed and which is kept in
the cache directory.
"""

import ctypes
import hashlib
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatsmith.cpu.operators import operator
from chatsmith.files.directories import is_own, own_cache
from chatsmith.files.writing import discard, keep, scratch
from chatsmith.screen.output import say
from chatsmith.screen.text import quoted

_SOURCE = Path(__file__).with_name("attention.cpp")
_LANES = 8  # numbers of a vector: widths are multiples of it
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mavx2", "-mfma", f"-DLANES={_LANES}")
_MATH = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")  # sums in any order


@cache
def compiled_attention() -> Any:
    """attention.cpp as a library; None on other processors, or where no compiler can make it."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    command = [compiler, *_FLAGS, *_MATH]
    name = hashlib.sha256(repr([_SOURCE.read_text(encoding="utf-8"), *command]).encode()).hexdigest()[:16]
    try:
        library = own_cache() / f"attention-{name}.so"
    except OSError as error:
        where = f"{quoted(error.filename or 'a place for compiled code')}: {error.strerror}"
        say(f"{where}: {_SOURCE.name} is compiled anew by every command", error=True)
        library = None
    try:
        if library is not None and is_own(library):  # it is code, and will run
            with suppress(OSError):  # damaged, or made where the C library is another
                return ctypes.CDLL(str(library))
        folder = scratch(library and library.parent)
        try:
            made = folder / f"attention-{name}.so"
            umask = ["sh", "-c", 'umask 077 && exec "$@"', "sh"]  # nobody else may write what will run
            subprocess.run([*umask, *command, str(_SOURCE), "-o", str(made)], check=True, capture_output=True)
            if library is None:
                return ctypes.CDLL(str(made))  # which stays when its name goes
            keep(made, library)  # others may be making the same one
        finally:
            discard(folder)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError):
        return None


def computes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether `single_query` takes them: query [n, H, 1, D], key, value [n, K, L, D or Dv], mask [n, 1, 1, L]."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and query.shape[0] == key.shape[0]
        and key.shape[:3] == value.shape[:3]
        and key.shape[2] == mask.shape[3]
        and query.shape[3] % _LANES == value.shape[3] % _LANES == 0
        and not torch.is_grad_enabled()
        and _is_compiled()
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_compiled() -> bool:
    return compiled_attention() is not None


def _run_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    query, key, value, mask = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, mask))
    rows, heads, _, width = query.shape
    output = query.new_empty(rows, 1, heads, value.shape[3])
    sizes = (ctypes.c_int64 * 15)(
        *(rows, key.shape[1], heads // key.shape[1], key.shape[2], width, value.shape[3]),
        mask.expand(rows, -1, -1, -1).stride(0),
        *(*query.stride()[:2], *key.stride()[:3], *value.stride()[:3]),
    )
    library = compiled_attention()
    function = library.decode_float32 if query.dtype == torch.float32 else library.decode_bfloat16
    addresses = (ctypes.c_void_p(x.data_ptr()) for x in (query, key, value, mask, output))
    function(*addresses, ctypes.c_float(scale), sizes)
    return output


single_query = operator(
    "decode_attention(Tensor query, Tensor key, Tensor value, Tensor mask, float scale) -> Tensor",
    _run_kernel,
    lambda query, key, value, mask, scale: query.new_empty(query.shape[0], 1, query.shape[1], value.shape[3]),
)
