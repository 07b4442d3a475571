"""Functions that a user names: `FILE.py:function` or `package.module:function`."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatsmith.errors import ConfigError


def load_function(target: str, *, kind: str) -> Callable[..., Any]:
    """The function that `target` names; its file or module is run.

    A file is a module under a name of its own, so that a `json.py` takes nobody's place. What it imports is found as
    Python finds modules; files beside it are not among them unless PYTHONPATH says so.

    Args:
        kind: what the function is to the user, for errors.
    Raises:
        ConfigError: if there is no such file, module or function, or importing it fails.
    """
    where = f"{kind} {target}"
    source, _, name = target.rpartition(":")
    if not source:
        raise ConfigError(f"{where}: names no function. Write FILE.py:function or package.module:function.")
    try:
        if source.endswith(".py"):
            if not Path(source).is_file():
                raise ConfigError(f"{where}: no such file.")
            path = Path(source).absolute()
            name_of_its_own = (
                f"chatsmith_user_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}_{path.stem.replace('.', '_')}"
            )
            spec = importlib.util.spec_from_file_location(name_of_its_own, source)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickle look their module up
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may end with exit()
        raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{where}: {source} has no function {name!r}.")
    checked: Callable[..., Any] = function
    return checked
