"""One configuration out of recipe, options and overrides.

Later sources win: the defaults, a TOML recipe, named command-line options, dotted overrides such as
`--rl.kl_coef 0.02`. An algorithm (`rl.algorithm`) stands for the keys of its preset where it is named: keys that stand
beside it in the same source, or come later, win over the preset, and the preset wins over what came before. An unknown
key is an error that names the nearest known one.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from chatsmith.config import CRITIC_KEYS, GROUPS, PRESETS, Config, SourceConfig
from chatsmith.errors import ConfigError
from chatsmith.screen.text import did_you_mean, quoted
from chatsmith.stages.table import RL

LONGEST_RECIPE = 1 << 20  # bytes
COMMAND_LINE = "command line"


def builtin_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes that come with the package."""
    folder = resources.files("chatsmith") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".toml")
    }


def read_recipe(name: str) -> dict[str, Any]:
    """The keys of a built-in recipe or of a TOML file: a name that ends in .toml or in which a directory stands.

    A recipe is code, since it names functions: a file is never taken for a built-in recipe whose name was mistyped.

    Raises:
        ConfigError: if there is no such recipe or the file is not TOML.
    """
    recipes = builtin_recipes()
    if name in recipes:
        return tomllib.loads(recipes[name])
    path = Path(name)
    if not (name.endswith(".toml") or "/" in name) or not path.is_file():
        hint = did_you_mean(name, recipes) or "known: " + ", ".join(recipes)
        raise ConfigError(f'no recipe or TOML file "{name}"; {hint}')
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_RECIPE + 1)
        if len(text) > LONGEST_RECIPE:
            raise ConfigError(f"{quoted(name)}: longer than {LONGEST_RECIPE >> 20} MiB, which no recipe is.")
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid TOML: {error}.") from error


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--rl.kl_coef 0.02` and `--rl.kl_coef=0.02` as nested keys. Values are TOML; anything else is a string.

    Raises:
        ConfigError: if an argument is not of that form or has no value.
    """
    given: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"unexpected argument {argument!r}; overrides look like --rl.kl_coef 0.02.")
        key = name[2:].replace("-", "_")
        _check_key(key, "the command line")
        if not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"{name} has no value; write {name} VALUE.")
        given[key] = toml_value(value)
    return nested(given)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"data.held_out": 0.1} as {"data": {"held_out": 0.1}}."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        place = result
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return result


def of_command(
    recipe: str,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Config:
    """The configuration of a command: its recipe if it has one, its options but those that were not given, overrides.

    Args:
        options: dotted keys with values; None or an empty list: not given.
        note: see `resolve`.
    Raises:
        ConfigError: see `read_recipe` and `resolve`.
    """
    layers = [(recipe, read_recipe(recipe))] if recipe else []
    given = {key: value for key, value in options.items() if value not in (None, [])}
    return resolve([*layers, (COMMAND_LINE, nested(given)), (COMMAND_LINE, overrides)], note=note)


def resolve(
    layers: Sequence[tuple[str, Mapping[str, Any]]], *, note: Callable[[str], None] = lambda text: None
) -> Config:
    """One configuration from (origin, keys) layers, later ones winning key by key.

    Args:
        note: told of keys of a recipe that have no effect.
    Raises:
        ConfigError: naming the key, the value, the origin, and what would be accepted.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, keys in layers:
        flat = dict(_flat(keys))
        for key in flat:
            _check_key(key, origin)
        algorithm = flat.get("rl.algorithm")
        if isinstance(algorithm, str) and algorithm != merged.get("rl.algorithm", "ppo"):
            for name in PRESETS.get(algorithm, ()):
                merged.pop(f"rl.{name}", None)
        for key, value in flat.items():
            # TOML has no null: "none" turns an optional key off, unless it is a value of the key's own
            off = value == "none" and "none" not in _choices(key)
            merged[key], origins[key] = None if off else value, origin
    config = _validated(merged, origins, layers)
    if idle := _idle(config, merged):
        typed = [key for key in idle if origins[key] == COMMAND_LINE]
        why = f'with rl.algorithm = "{config.rl.algorithm}" and rl.baseline = "{config.rl.baseline}" there is no critic'
        if typed:
            raise ConfigError(f"{COMMAND_LINE}: {', '.join(typed)}: {why}. Leave it out, or choose another algorithm.")
        note(f"{origins[idle[0]]}: not used are {', '.join(idle)}: {why}")
        config = _validated({key: value for key, value in merged.items() if key not in idle}, origins, layers)
    return config


def _idle(config: Config, given: Mapping[str, Any]) -> list[str]:
    """Keys that are given and have no effect: those of a critic where there is none."""
    if RL.name not in config.stages or config.rl.baseline == "critic":
        return []
    return [f"rl.{name}" for name in CRITIC_KEYS if f"rl.{name}" in given]


def _validated(
    merged: Mapping[str, Any], origins: Mapping[str, str], layers: Sequence[tuple[str, Mapping[str, Any]]]
) -> Config:
    try:
        return Config.model_validate(nested(merged))
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"][:2] == ("data", "sources"):
            raise ConfigError(f"{origins['data.sources']}: {_source_error(error, merged['data.sources'])}") from error
        path = [str(part) for part in first["loc"] if not isinstance(part, int)]
        candidates = [".".join(path[:n]) for n in range(len(path), 0, -1)]
        key = next((name for name in candidates if name in origins), candidates[0])
        where = origins.get(key, layers[-1][0] if layers else "defaults")
        message = first["msg"].removeprefix("Value error, ")
        given = "" if key not in origins else f" = {first['input']!r}"
        text = message if first["type"] == "value_error" else f"{key}{given}: {message}"
        raise ConfigError(f"{where}: {text}.") from error


def _source_error(error: ValidationError, sources: Any) -> str:
    """What is wrong in `data.sources`, by the number of the entry and, if it has one, its source."""
    # an entry is reported as a text and as a table: what lies deepest was meant, and a misspelt key explains a lack
    telling = max(
        error.errors(), key=lambda e: (len(e["loc"]), e["type"] == "extra_forbidden", e["type"] != "string_type")
    )
    if telling["type"] == "value_error":
        return telling["msg"].removeprefix("Value error, ") + "."
    if len(telling["loc"]) < 3:
        return f"data.sources = {sources!r}: it must be a list."
    number, tags = int(telling["loc"][2]), telling["loc"][3:]
    entry = sources[number]
    where = f"[[data.sources]] number {number + 1}"
    if not isinstance(entry, Mapping):
        return f"{where} is {entry!r}, neither a text nor a table."
    if "source" in entry:
        where += f' ("{entry["source"]}")'
    key = next(str(tag) for tag in tags if tag in SourceConfig.model_fields or tag in entry)
    if telling["type"] == "extra_forbidden":
        known = SourceConfig.model_fields
        hint = did_you_mean(key, known) or f"the keys are {', '.join(known)}."
        return f'{where}: unknown key "{key}"; {hint}'
    if telling["type"] == "missing":
        return f'{where} has no "{key}".'
    message = "neither a text nor a table" if telling["type"] in ("dict_type", "string_type") else telling["msg"]
    return f"{where}: {key} = {telling['input']!r}: {message}."


def _flat(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""
    own = [name for name in Config.model_fields if name not in GROUPS]
    return own + [f"{name}.{key}" for name, group in GROUPS.items() for key in group.model_fields]


def _choices(key: str) -> set[Any]:
    """The values that a key names one by one."""
    *groups, name = key.split(".")
    fields = GROUPS[groups[0]].model_fields if groups else Config.model_fields

    def words(annotation: Any) -> set[Any]:
        parts = get_args(annotation)
        return {part for part in parts if isinstance(part, str)}.union(*map(words, parts))

    return words(fields[name].annotation)


def _check_key(key: str, origin: str) -> None:
    known = known_keys()
    if key in known:
        return
    same_key = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    groups = ", ".join(sorted({name.split(".")[0] for name in known}))
    hint = did_you_mean(key, known) or did_you_mean(key, same_key[:1], cutoff=0.0) or f"groups are {groups}."
    raise ConfigError(f'{origin}: unknown key "{key}"; {hint}')


def toml_value(text: str) -> Any:
    """TOML where it is valid, such as a number or a list, else the text as it stands."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
