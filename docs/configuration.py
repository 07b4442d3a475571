"""Writes configuration.md beside this file from the configuration's own docstrings: `make docs`."""

import inspect
import json
from pathlib import Path
from typing import Any

from chatsmith.config import GROUPS, Config

INTRODUCTION = """# Configuration

All keys with their defaults, made from `chatsmith/config.py`. They stand in a TOML recipe as `[group]` and `key`, and
on the command line as `--group.key`:

```sh
chatsmith train --actor-model MODEL --data pairs.jsonl --rl.kl_coef 0.02 --rl.betas '[0.9, 0.99]' --run-dir runs/mine
```

Later sources win: defaults, recipe, named options, dotted overrides. Values on the command line are TOML; anything else
is taken as a string. An unknown key is an error. `none` turns an optional key off. `chatsmith recipes tiny-cpu` shows
what the built-in recipe changes.
"""


def page() -> str:
    """The whole page."""
    own = {name: field for name, field in Config.model_fields.items() if name not in GROUPS}
    sections = ["## The run\n\n" + _table(own, "")]
    sections += [
        f"## {name}\n\n{inspect.getdoc(group)}\n\n{_table(group.model_fields, name + '.')}"
        for name, group in GROUPS.items()
    ]
    return "\n".join([INTRODUCTION, *sections])


def _table(fields: dict[str, Any], prefix: str) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = "required" if field.is_required() else "none" if field.default is None else _toml(field.default)
        meaning = " ".join(field.description.split()).removesuffix(".").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _toml(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
