"""`chatsmith data check` and `chatsmith data show`. Everything heavy is imported inside."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatsmith.data.spec import STAGES
from chatsmith.errors import ConfigError
from chatsmith.screen.output import say

if TYPE_CHECKING:
    from chatsmith.config import Config

data = typer.Typer(no_args_is_help=True, help="Look at data before you train on it.")

Specs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SPEC]...", help=r"Sources: \[STAGE\[,STAGE]:]PATH_OR_ID\[#SPLIT]\[@WEIGHT]."),
]
Recipe = Annotated[
    str,
    typer.Option(help="A recipe or a TOML file: its sources, stages and limits. A recipe is code: it names functions."),
]
Model = Annotated[str | None, typer.Option("--actor-model", help="Whose tokens to count: a directory or a hub id.")]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="KEY=VALUE",
        help='A key of a [[data.sources]] table for all SPECs, as in prompt="{Body} {Question}"; several may be given.',
    ),
]
RewardBase = Annotated[str | None, typer.Option("--reward-model", help="Base of the reward model, if another.")]


@data.command()
def check(
    context: typer.Context,
    specs: Specs = None,
    map: Map = None,
    recipe: Recipe = "",
    actor_model: Model = None,
    reward_model: RewardBase = None,
) -> None:
    """Say what is in the data, who gets it, how long it is and what looks wrong. Exit code 1 if a run would fail."""
    config = _config(context.obj, specs, map, recipe, actor_model, reward_model)

    from chatsmith.inspection.check import check as look
    from chatsmith.inspection.readers import readers
    from chatsmith.inspection.terminal import draw_facts
    from chatsmith.intake import say_functions
    from chatsmith.screen.console import Screen

    screen = Screen()
    say_functions(config, rewards=False, say=screen.line)
    facts = look(config, readers(config), whole_run=bool(recipe))
    draw_facts(screen.console, facts)
    if facts.failed:
        raise typer.Exit(1)


@data.command()
def show(
    context: typer.Context,
    specs: Specs = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many records.")] = 5,
    map: Map = None,
    stage: Annotated[
        str, typer.Option(help=f"As which stage sees them: {', '.join(STAGES[:-1])} or {STAGES[-1]}.")
    ] = STAGES[0],
    recipe: Recipe = "",
    actor_model: Model = None,
    reward_model: RewardBase = None,
    at: Annotated[str, typer.Option(help="This record instead: FILE:LINE or FILE[ROW].", show_default=False)] = "",
    seed: Annotated[int, typer.Option(help="Which records are drawn.")] = 1,
) -> None:
    """Show records token by token as a stage sees them, and which tokens it learns."""
    config = _config(context.obj, specs, map, recipe, actor_model, reward_model)

    from chatsmith.intake import read, say_functions, share

    seen_by = next((name for name in STAGES if name == stage), None)
    if seen_by is None:
        raise ConfigError(f"--stage {stage}: the stages are {', '.join(STAGES)}.")
    if not config.actor_model:
        raise ConfigError("give --actor-model DIR_OR_ID: its tokenizer and chat template make the tokens.")

    from chatsmith.screen.console import Screen

    screen = Screen()
    say_functions(config, rewards=False, say=screen.line)
    sources = [read(config, source, on_error="skip") for source in config.data.sources]
    dealt = share(config, sources)

    from chatsmith.inspection import show as showing
    from chatsmith.inspection.readers import readers
    from chatsmith.inspection.terminal import draw_legend, draw_view

    reader = readers(config)[seen_by]
    draw_legend(screen.console)
    if at:
        records = [showing.at(sources, at, seen_by)]
        screen.line(f"this record goes to: {showing.whereabouts(dealt, records[0])}", "dim")
    else:
        records = showing.sample(dealt, seen_by, count, seed=seed)
        screen.line(f"{len(records)} of {len(dealt[seen_by].train):,} examples that {stage} trains on", "dim")
    screen.line("")
    for record in records:
        draw_view(screen.console, showing.view(record, seen_by, reader, config))


def _config(
    overrides: Mapping[str, Any],
    specs: list[str] | None,
    map: list[str] | None,
    recipe: str,
    actor_model: str | None,
    reward_model: str | None,
) -> "Config":
    from chatsmith.resolve import of_command, toml_value

    if map and not specs:
        raise ConfigError("--map says what the columns of sources are: name these as SPECs before it.")
    mapping = {}
    for entry in map or ():
        key, found, text = entry.partition("=")
        if not found or not key:
            raise ConfigError(f'--map "{entry}": write KEY=VALUE, as in --map prompt="{{question}}".')
        mapping[key] = toml_value(text)
    sources = [{"source": spec, **mapping} for spec in specs or ()] if mapping else specs
    options = {"data.sources": sources, "actor_model": actor_model, "reward_model": reward_model}
    config = of_command(recipe, options, overrides)
    if config.world is not None:
        raise ConfigError(f"{recipe}: a recipe with a [world] group makes its own data; there is none to look at yet.")
    if not specs and not recipe:
        raise ConfigError("name a source, as after --data, or a recipe with --recipe.")
    if sys.stderr.isatty():
        say("Reading ...", error=True)  # torch and transformers alone take seconds
    return config
