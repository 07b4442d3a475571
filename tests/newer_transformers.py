"""Turns transformers into what it says of its own version 5.40: every argument that goes until then is gone.

Where WITHOUT_OLD_NAMES stands in the environment, and only if this is imported before any model. A forward of 5.40
will swallow an old name among its other keywords and compute something else; here it raises, so that it is noticed.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import transformers.utils.deprecation
from packaging.version import Version
from transformers.utils.generic import ModelOutput

PRETENDED = Version("5.40.0")


def without_kwarg(old_name: str, version: str, *positional: Any, **options: Any) -> Callable[..., Any]:
    """Stands in for transformers' decorator of the same arguments."""
    if Version(version) > PRETENDED:
        return _deprecate_kwarg(old_name, version, *positional, **options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if old_name in kwargs:
                raise TypeError(f"{function.__qualname__}: {old_name} is gone in transformers {version}")
            return function(*args, **kwargs)

        return checked

    return decorate


_deprecate_kwarg = transformers.utils.deprecation.deprecate_kwarg
if os.environ.get("WITHOUT_OLD_NAMES"):
    transformers.utils.deprecation.deprecate_kwarg = without_kwarg
    for name in ("past_key_values", "cache_params"):
        if hasattr(ModelOutput, name):  # from 5.24 on
            delattr(ModelOutput, name)
