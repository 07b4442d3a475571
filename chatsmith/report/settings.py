"""The configuration as a run recorded it: what differs from the defaults, from the recipe, and from another run."""

import json
import re
from collections.abc import Mapping
from typing import Any

from chatsmith.config import Config
from chatsmith.errors import ChatsmithError
from chatsmith.report.reading import RecordedRun
from chatsmith.resolve import read_recipe, resolve
from chatsmith.screen.text import shell

_NAMED = {
    "seed": "--seed",
    "stages": "--stages",
    "judge": "--judge",
    "actor_model": "--actor-model",
    "reward_model": "--reward-model",
    "data.sources": "--data",
    "rl.rewards": "--reward",
    "trackers": "--track",
}
_ABSENT = object()


def settings(run: RecordedRun) -> dict[str, list[dict[str, Any]]]:
    """The recorded configuration, group by group; the keys without a group come first, under an empty name.

    Of each key its value, the default where that is another, and whether it differs from what the recipe says.
    """
    recorded, defaults = _flat(run.manifest.config.whole()), _flat(Config().model_dump(mode="json"))
    recipe = _recipe(run.manifest.recipe or "defaults")
    groups: dict[str, list[dict[str, Any]]] = {"": []}
    for key, value in recorded.items():
        group, _, name = key.rpartition(".")
        default = toml(defaults[key]) if key in defaults and defaults[key] != value else ""
        by_hand = recipe is not None and recipe.get(key, _ABSENT) != value
        row = {"key": name, "value": toml(value), "default": default, "by_hand": by_hand}
        groups.setdefault(group, []).append(row)
    return {group: rows for group, rows in groups.items() if rows}


def differences(one: RecordedRun, two: RecordedRun) -> list[tuple[str, ...]]:
    """Keys in which two runs differ, with both values."""
    here, there = _flat(one.manifest.config.whole()), _flat(two.manifest.config.whole())
    keys = [key for key in {**here, **there} if here.get(key, _ABSENT) != there.get(key, _ABSENT)]
    return [(key, *[toml(flat[key]) if key in flat else "–" for flat in (here, there)]) for key in keys]


def command(run: RecordedRun) -> str:
    """The command that repeats the run in a new directory; empty if nothing of a configuration is recorded."""
    words = repeated(run.manifest.config.whole(), run.manifest.recipe or "defaults")
    force = ["--force"] if run.status == "forced" else []
    return shell(["chatsmith", *words, "--run-dir", f"runs/{run.name}-again", *force]) if words else ""


def code(run: RecordedRun) -> str:
    """The functions that this command would run, which a stranger's run may have chosen; empty if there are none."""
    config = run.manifest.config
    named = [source.get("function") for source in config.data.sources if isinstance(source, Mapping)]
    rewards = [reward for reward in config.rl.rewards if ":" in reward]
    return ", ".join(str(name) for name in [*named, *rewards, config.judge] if name)


def repeated(config: Mapping[str, Any], recipe: str) -> list[str]:
    """The words after `chatsmith` that stand for a recorded configuration: its recipe, and what was changed by hand.

    There are none if nothing of a configuration is recorded.
    """
    recorded = _flat(config)
    stages = recorded.get("stages")
    if not isinstance(stages, list) or not stages:
        return []
    start, named = recipe, [f"./{recipe}" if recipe.startswith("-") else recipe]
    if recipe == "defaults" or _recipe(recipe) is None:  # `train` without recipe and model is the demo
        start, named = "defaults" if recorded.get("actor_model") or len(stages) == 1 else "tiny-cpu", []
    plain = _recipe(start)
    assert plain is not None, "what comes with the package is there"
    # naming another algorithm changes what is said of other keys
    base = (_recipe(start, recorded.get("rl.algorithm")) or plain) | {"rl.algorithm": plain["rl.algorithm"]}
    words = [*(["train"] if len(stages) > 1 else [str(stages[0])]), *named]
    for key, value in recorded.items():
        if base.get(key, _ABSENT) == value or value == [] or (key == "stages" and len(stages) == 1):
            continue
        listed = key in _NAMED and isinstance(value, list)
        if listed and any(isinstance(item, Mapping) for item in value):  # only the key itself takes a source's mapping
            words += [f"--{key}", toml(value)]
        else:
            values = list(map(_word, value if listed else [value]))
            option = _NAMED.get(key, f"--{key}")
            is_plain = not any(each.startswith("-") for each in values)  # none could be taken for an option
            words += [option, *values] if is_plain else [f"{option}={each}" for each in values]
    return words


def toml(value: Any) -> str:
    """A value as TOML writes it; "none" where an optional key is off."""
    if value is None:
        return '"none"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):  # what is off is left out: a table of TOML has no word for it
        given = {name: item for name, item in value.items() if item is not None and item != {}}
        keys = (name if re.fullmatch(r"[\w-]+", name, re.ASCII) else toml(name) for name in given)
        return f"{{{', '.join(f'{key} = {toml(item)}' for key, item in zip(keys, given.values(), strict=True))}}}"
    return json.dumps(value, ensure_ascii=False)


def _word(value: Any) -> str:
    """A value on the command line, where a plain string needs no quotes of TOML."""
    return value if isinstance(value, str) else toml(value).strip('"')


def _recipe(name: str, algorithm: Any = None) -> dict[str, Any] | None:
    """What a run's recipe says as it is now, with an algorithm if one is named; None if it is not there any more."""
    layers = [] if algorithm is None else [("", {"rl": {"algorithm": algorithm}})]
    try:
        recipe = [] if name == "defaults" else [(name, read_recipe(name))]
        config = resolve([*recipe, *layers])
    except (ChatsmithError, OSError):
        return None
    return _flat(config.model_dump(mode="json"))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys; a group that is off (null) has none."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        elif value is not None:
            flat[key] = value
    return flat
