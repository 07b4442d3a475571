"""`--help` of the commands that take a configuration: its keys, which are options that typer knows nothing of.

`--help` names them in their groups, `--help-all` says of each what it means.
"""

import inspect
import json
import re
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from chatsmith.config import GROUPS
from chatsmith.screen.output import Console, say


class Configured(TyperCommand):
    """A command whose help ends with the keys of the configuration."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        Console().print(_names())


def _show_all(context: typer.Context, asked: bool) -> None:
    if asked:
        say(context.get_help(), end="")
        console = Console()
        for group in GROUPS:
            console.print(_meanings(group))
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option("--help-all", callback=_show_all, is_eager=True, help="Show what each key means too, and exit."),
]


def _names() -> RenderableType:
    """The keys by group, without their meaning."""
    table = _table()
    for name, group in GROUPS.items():
        table.add_row(Text(f"--{name}.KEY", style="bold cyan"), Text(", ".join(group.model_fields)))
    return _panel(table, "Configuration: --rl.kl_coef 0.02; --help-all says what each key means")


def _meanings(group: str) -> RenderableType:
    """The keys of a group: default and meaning."""
    table = _table()
    for key, field in GROUPS[group].model_fields.items():
        name = f"--{group}.{key}"
        default = "required" if field.is_required() else "none" if field.default is None else json.dumps(field.default)
        table.add_row(Text(name, style="bold cyan"), Text(default, style="dim"), _plain(field.description))
    return _panel(Lines(_plain(inspect.getdoc(GROUPS[group])), Text(), table), group)


def _plain(text: str | None) -> Text:
    """A docstring of the configuration without its links, which are those of docs/configuration.md."""
    return Text(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join((text or "").split())))


def _table() -> Table:
    return Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))


def _panel(content: RenderableType, title: str) -> Panel:
    return Panel(content, box=box.ROUNDED, border_style="dim", title=Text(title), title_align="left")
