"""The command line. One subcommand is one function; everything heavy is imported inside.

Exit codes: 0 done (gates held, or --force), 1 the user's mistake, 2 a gate failed, 3 an internal error,
130 and 143 interrupted after saving a checkpoint.
"""

import errno
import inspect
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer import Argument, Option

from chatsmith import __version__
from chatsmith.errors import ChatsmithError, ConfigError
from chatsmith.help import Configured, HelpAll
from chatsmith.inspection.commands import data as data_commands
from chatsmith.machine import in_words, out_of_memory, place, refusal
from chatsmith.screen.output import guard_streams, say
from chatsmith.screen.text import one_line, printable, quoted
from chatsmith.stages.table import BY_NAME, TABLE, VOICES, Stage

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Your own ChatGPT-style assistant from one command: SFT, reward model, PPO.",
    epilog="Every key of the configuration is an option: --rl.kl_coef 0.02. `chatsmith train --help-all` shows them.",
)
collection = typer.Typer(no_args_is_help=True, help="New training data from a model behind an endpoint.")
app.add_typer(collection, name="collect")
app.add_typer(data_commands, name="data")


_OVERRIDE = re.compile(r"--\w+\.[\w.-]+(=.*)?", re.DOTALL)
_CONFIGURED = ("train", "data", *BY_NAME)  # commands that take a configuration
_KEYS = {"data": "data.sources", "rewards": "rl.rewards", "track": "trackers"}  # of the configuration, by other names
# options of `train` that a stage alone has if its entry names them
_OF_SOME = ("reward_model", "rewards", "judge", "stages", "only")
_SEVERAL = ("--data", "--reward", "--stages", "--only", "--track")  # options that may be followed by several values


def _show_version(asked: bool) -> None:
    if asked:
        say(f"chatsmith {__version__}")
        raise typer.Exit


@app.callback()
def chatsmith(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(cls=Configured)
def train(
    context: typer.Context,
    recipe: Annotated[
        str,
        Argument(
            help="A built-in recipe (see `chatsmith recipes`) or a TOML file. It is code: read one you did not write."
        ),
    ] = "",
    run_dir: Annotated[Path | None, Option(help="Where everything goes. Default: runs/RECIPE.")] = None,
    seed: Annotated[int | None, Option(help="Seed of models, orders and sampling.")] = None,
    actor_model: Annotated[str | None, Option(help="Model to start from: a directory or a hub id.")] = None,
    reward_model: Annotated[str | None, Option(help="Base of the reward model. Default: the SFT model.")] = None,
    rewards: Annotated[
        list[str] | None,
        Option("--reward", help="Ready rewards: DIR, FILE.py:function or `trained`, each with an optional @WEIGHT."),
    ] = None,
    judge: Annotated[
        str | None, Option(help="A gold judge: FILE.py:function. Training never sees what it says.")
    ] = None,
    data: Annotated[
        list[str] | None, Option(help=r"Sources: \[STAGE\[,STAGE]:]PATH_OR_ID\[#SPLIT]\[@WEIGHT]. Several may follow.")
    ] = None,
    stages: Annotated[list[str] | None, Option(help=f"The stages that this run has, of {', '.join(BY_NAME)}.")] = None,
    track: Annotated[
        list[str] | None, Option(help="Where metrics go besides the run directory: tensorboard, wandb, trackio.")
    ] = None,
    only: Annotated[list[str] | None, Option(help=f"Run only these stages now: {', '.join(BY_NAME)}.")] = None,
    from_: Annotated[str | None, Option("--from", help="Run this stage and all later ones anew.")] = None,
    force: Annotated[bool, Option(help="Go on past a failed gate.")] = False,
    dry_run: Annotated[bool, Option(help="Check data, models and rewards, print the plan, and stop.")] = False,
    help_all: HelpAll = False,
) -> None:
    """Train an assistant: SFT, reward model, PPO. Without arguments: the tiny demo, in minutes on a CPU."""
    recipe = recipe or ("" if actor_model else "tiny-cpu")
    _train(
        context.obj,
        recipe,
        run_dir=run_dir,
        seed=seed,
        actor_model=actor_model,
        reward_model=reward_model,
        rewards=rewards,
        judge=judge,
        data=data,
        stages=stages,
        track=track,
        only=only,
        from_=from_,
        force=force,
        dry_run=dry_run,
    )


def _alone(stage: Stage) -> Callable[..., None]:
    """The command of one stage: what `train` takes for every stage, and the options of the stage's entry."""

    def command(context: typer.Context, **options: Any) -> None:
        _train(context.obj, stages=[stage.name], **options)

    parameters = dict(inspect.signature(train).parameters)
    for name in _OF_SOME:
        if name not in stage.options:
            del parameters[name]
    for name, meaning in stage.options.items():
        value, option = get_args(parameters[name].annotation)
        option = copy(option)
        option.help = meaning
        parameters[name] = parameters[name].replace(annotation=Annotated[value, option])
    command.__name__ = stage.name
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return command


for _stage in TABLE:
    app.command(_stage.name, cls=Configured, help=f"One stage alone: {_stage.title}.")(_alone(_stage))


@app.command()
def recipes(name: Annotated[str, Argument(help="Show this recipe.")] = "") -> None:
    """List the built-in recipes, or print one to copy and change."""
    from chatsmith.resolve import builtin_recipes

    texts = builtin_recipes()
    if name and name not in texts:
        raise ConfigError(f'no recipe "{name}"; known: {", ".join(texts)}')
    if name:
        say(texts[name], end="")
        return
    for each, text in texts.items():
        about = " ".join(line.lstrip("# ") for line in text.split("\n\n")[0].splitlines())
        say(f"{each:12} {about}")


@app.command()
def chat(
    model: Annotated[str, Argument(metavar="RUN_OR_MODEL", help="A run, a model directory or a hub id.")],
    stage: Annotated[
        str | None, Option(help=f"Of a run: {', '.join(VOICES)}. Default: what its last stage left.")
    ] = None,
    system: Annotated[str, Option(help="Text that tells the model what to be.")] = "",
    max_new_tokens: Annotated[int, Option(help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, Option(help="0: always the most likely token.")] = 0.7,
    top_p: Annotated[float, Option(help="Draw from the most likely tokens with this mass; 1: from all.")] = 0.95,
    top_k: Annotated[int, Option(help="Draw from this many of the most likely tokens; 0: from all.")] = 0,
    repetition_penalty: Annotated[float, Option(help="Above 1: tokens that were there are less likely.")] = 1.0,
    stop: Annotated[list[str] | None, Option(help="Text that ends an answer, in which it is left out.")] = None,
    seed: Annotated[int | None, Option(help="The same seed and lines give the same answers.")] = None,
) -> None:
    """Talk with a trained model. Lines from a pipe are answered one by one."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"Loading {quoted(model)} ...")  # torch and transformers take seconds

    from chatsmith.chat import chat as talk

    talk(
        model,
        stage=stage,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
    )


@app.command()
def runs(
    directory: Annotated[Path, Argument(help="Where the run directories are.", show_default=False)] = Path("runs"),
) -> None:
    """List the runs below DIRECTORY (default: runs) with their status and key figures."""
    from chatsmith.runs.listing import show_runs
    from chatsmith.screen.console import Screen

    show_runs(Screen(), directory)


@app.command()
def report(
    run: Annotated[Path, Argument(help="A run directory.")],
    run2: Annotated[Path | None, Argument(help="Compare with this one.", show_default=False)] = None,
    output: Annotated[
        Path | None, Option(help="Where the page goes. Default: RUN/report.html or RUN/report-vs-RUN2.html.")
    ] = None,
) -> None:
    """Write a run's page anew: verdicts, curves, answers. With RUN2: both runs beside each other."""
    from chatsmith.report.page import write_comparison, write_report

    path = write_report(run, output) if run2 is None else write_comparison(run, run2, output)
    say(quoted(path))


@app.command()
def bench(
    model: Annotated[
        str,
        Argument(metavar="RUN_OR_MODEL", help="A run, a model directory or a hub id. Default: a small random Llama."),
    ] = "",
    prompt_tokens: Annotated[int | None, Option(help="Length of the prompts. Default: 256 on a GPU, else 64.")] = None,
    answer_tokens: Annotated[int | None, Option(help="Length of the answers. Default: 256 on a GPU, else 64.")] = None,
    batch: Annotated[
        int | None, Option(help="Answers that are generated together. Default: 128 on a GPU, else 32.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print all figures as JSON too, as always in a pipe.")] = False,
) -> None:
    """Measure this machine: tokens per second of generating and training, and what share of its limits that is."""
    from chatsmith.assistant import find
    from chatsmith.screen.console import Screen

    if model:
        find(model)  # one that is not there is refused at once
    Screen().line("Loading torch and transformers ...", "dim")

    from chatsmith.bench import bench as measure

    figures = measure(model, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, batch=batch)
    if as_json or not sys.stdout.isatty():
        say(json.dumps(figures))


@collection.command("self-instruct")
def self_instruct(
    seeds: Annotated[Path, Option(help="Instructions in English or Chinese to begin from, in any format of data.")],
    endpoint: Annotated[str, Option(help="An OpenAI-compatible address, such as http://localhost:8000/v1.")],
    model: Annotated[str, Option(help="The model's name there.")],
    number: Annotated[int, Option("--number", "-n", min=1, help="Records in all.")] = 1000,
    output: Annotated[Path, Option(help="Where the records go.")] = Path("self-instruct.jsonl"),
    budget: Annotated[float | None, Option(help="US dollars to spend at most; needs both prices.")] = None,
    price_input: Annotated[float | None, Option(min=0, help="US dollars for a million tokens in.")] = None,
    price_output: Annotated[float | None, Option(min=0, help="US dollars for a million tokens out.")] = None,
    temperature: Annotated[float, Option(min=0, help="Of instructions and answers.")] = 1.0,
    max_tokens: Annotated[int, Option(min=1, help="Longest reply, in tokens.")] = 2048,
    parallel: Annotated[int, Option(min=1, help="Requests that run together.")] = 8,
    seed: Annotated[int, Option(help="Of the examples that are shown to the model.")] = 0,
) -> None:
    """New instructions after the example of seeds, and answers to them. The key is read from OPENAI_API_KEY."""
    if (price_input is None) != (price_output is None):
        raise ConfigError("--price-input and --price-output belong together. Give both, or none.")
    prices = None if price_input is None or price_output is None else (price_input, price_output)
    if budget is not None and prices is None:
        raise ConfigError(
            "--budget needs prices. Give --price-input and --price-output, US dollars per million tokens."
        )

    from chatsmith.collect.endpoint import Endpoint
    from chatsmith.collect.self_instruct import self_instruct as collect
    from chatsmith.collect.tally import Tally
    from chatsmith.screen.console import Screen

    asked = Endpoint(endpoint, model, temperature=temperature, max_tokens=max_tokens)
    tally = Tally(number, prices, budget)
    raise typer.Exit(collect(seeds, output, asked, tally, parallel=parallel, seed=seed, screen=Screen()))


def _train(
    overrides: dict[str, Any],
    recipe: str = "",
    *,
    run_dir: Path | None,
    from_: str | None,
    force: bool,
    dry_run: bool,
    only: Sequence[str] | None = None,
    help_all: bool = False,
    **keys: Any,
) -> None:
    """
    Args:
        keys: of the configuration, by their options; None or empty: not given.
    """
    from chatsmith.resolve import of_command

    notes: list[str] = []
    config = of_command(
        recipe, {_KEYS.get(name, name): value for name, value in keys.items()}, overrides, note=notes.append
    )
    for stage in filter(None, [*(only or ()), from_]):
        if stage not in BY_NAME:
            raise ConfigError(f'no stage "{stage}"; stages are {", ".join(BY_NAME)}.')
    restart_from = BY_NAME[from_].name if from_ else None
    directory = run_dir or Path("runs") / (Path(recipe).stem or Path(config.actor_model).name)

    from chatsmith.intake import say_functions, take_in
    from chatsmith.screen.console import Screen

    screen = Screen()
    for note in notes:
        screen.line(note, "yellow")
    say_functions(config, rewards=True, say=screen.line)
    if config.data.sources:
        screen.line("Reading the data ...", "dim")
    sources = take_in(config, None if dry_run else directory, restart_from=restart_from)
    screen.line("Loading torch and transformers ...", "dim")

    from chatsmith.pipeline import train as run_pipeline

    run_pipeline(
        config,
        directory,
        recipe=recipe or "defaults",
        only=[BY_NAME[stage].name for stage in only or BY_NAME],
        restart_from=restart_from,
        force=force,
        dry_run=dry_run,
        sources=sources,
    )


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Dotted overrides apart from the rest, and `--data A B` written out as `--data A --data B`."""
    overrides: list[str] = []
    rest: list[str] = []
    several = ""
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if _OVERRIDE.fullmatch(argument):
            overrides.append(argument)
            if "=" not in argument and arguments and not arguments[0].startswith("--"):
                overrides.append(arguments.pop(0))
            several = ""
        elif argument.startswith("-"):
            rest.append(argument)
            several = argument if argument in _SEVERAL else ""
            if several and arguments:
                rest.append(arguments.pop(0))
        else:
            rest += [several, argument] if several else [argument]
    return overrides, rest


def silence_deprecations() -> None:
    """What libraries tell programmers about their next versions is no news for a user; tests and `python -W` see it."""
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message="(?is).*deprecat")


def prepare_streams() -> None:
    """What a terminal's encoding lacks is replaced, and so are control characters; a closed stream goes nowhere."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    guard_streams()


def check_place() -> None:
    """Raises:
    ConfigError: if the directory that the command was typed in has been deleted: libraries die of it without a word.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current directory does not exist any more. Go to another one: cd.") from None


def refuse_bytes(arguments: Sequence[str]) -> None:
    """Raises:
    ConfigError: if an argument is no UTF-8 text; what libraries write into JSON and pages must be.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            written = os.fsencode(argument).decode(errors="backslashreplace")
            raise ConfigError(f"{written}: not UTF-8 text. Rename it, or give a link to it (ln -s).") from None


def explain(error: Exception) -> int:
    """Say what ended the command, and with which code it exits."""
    if out_of_memory(error):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        say(
            f"Out of memory: {reason} Lower --engine.max_batch_tokens (training and scoring), --engine.max_batch "
            "(generating) or --engine.max_logits_mib (vocabulary); the same command then continues after its last "
            "checkpoint.",
            error=True,
        )
        return 1
    refused = refusal(error)
    if refused is not None:
        where = place(refused) or "standard output, or a file that the system does not name"
        say(one_line(f"RunError: {where}: {in_words(refused)}. Then type the same command again."), error=True)
        return 1
    from chatsmith.runs.runtime import Interrupted

    if isinstance(error, Interrupted):
        say(f"\n{error}. The same command (without --from) continues from there.", error=True)
        return error.exit_code
    traceback.print_exception(error)
    say("This is a bug in chatsmith, not your mistake. Please report it with the lines above.", error=True)
    return 3


def main() -> None:
    """Entry point of the `chatsmith` command."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    silence_deprecations()
    prepare_streams()
    code: int | str | None = 0
    try:
        from chatsmith.resolve import parse_overrides

        check_place()
        refuse_bytes(sys.argv[1:])
        overrides, rest = split_arguments(sys.argv[1:])
        if overrides and rest and rest[0] not in _CONFIGURED:
            raise ConfigError(f"{overrides[0]}: `chatsmith {rest[0]}` takes no configuration. Leave it out.")
        if any(printable(argument) != argument for argument in sys.argv):
            app.rich_markup_mode = None  # rich would draw usage errors past the guard
        app(args=rest, obj=parse_overrides(overrides))
    except SystemExit as stop:  # the command-line library reports usage errors with 2, which here means a failed gate
        code = 1 if stop.code == 2 else stop.code
    except ChatsmithError as error:
        say(f"{type(error).__name__}: {error}", error=True)
        code = error.exit_code
    except Exception as error:
        code = explain(error)
    try:
        sys.stdout.flush()
    except OSError as error:  # what is left to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0 and error.errno != errno.EPIPE:
            code = explain(error)
    raise SystemExit(code)
