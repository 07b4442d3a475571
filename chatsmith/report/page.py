"""`report.html`: one file that holds everything a run has to say, without network and scripts.

What a run holds (prompts, answers, data, configuration) is text to be shown and nothing else: the template escapes
all of it, and a policy in the page forbids whatever is not style.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from chatsmith.errors import RunError
from chatsmith.files.checkpoint import save_text
from chatsmith.report import answers, charts, sections
from chatsmith.report.data import checked
from chatsmith.report.reading import RecordedRun, algorithms, harmless, number, numbers, read_run
from chatsmith.report.sections import stage_names
from chatsmith.report.settings import code, command, differences, settings
from chatsmith.report.tokens import token_by_token
from chatsmith.screen.text import duration


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Write a run's page, to `report.html` in its directory unless told otherwise; says where it is.

    Raises:
        RunError: if there is no run, or the page cannot be written.
    """
    run = read_run(run_directory)
    path = _file(output or run_directory / "report.html")
    save_text(path, _render("page.html", _page(run)))
    return path


def write_comparison(run_directory: Path, other_directory: Path, output: Path | None = None) -> Path:
    """Write two runs beside each other, to `report-vs-OTHER.html` in the first one's directory unless told otherwise.

    Raises:
        RunError: if there is no run, or the page cannot be written.
    """
    one, two = read_run(run_directory), read_run(other_directory)
    name = re.sub(r"[^\w.-]+", "-", two.name)
    path = _file(output or run_directory / f"report-vs-{name}.html")
    save_text(path, _render("comparison.html", _comparison(one, two)))
    return path


def _file(path: Path) -> Path:
    if path.is_dir():
        raise RunError(f"{path}: a directory. Give --output a file.")
    return path


def _render(template: str, context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("chatsmith.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    filters = {"signed": _signed, "percent": _percent, "plain": _plain, "duration": _duration, "typeset": _typeset}
    environment.filters |= filters
    return environment.get_template(template).render(context)


def _page(run: RecordedRun) -> dict[str, Any]:
    """Everything the page shows; an empty value leaves its section out."""
    return {
        "act": charts.second_act(run),
        "curves": charts.curves([run], with_gold=False),
        "frontier": charts.frontier([run]),
        "reward": sections.reward(run),
        "gold": sections.gold(run),
        "before_after": answers.before_and_after(run),
        "reward_unit": _reward_unit(run),
        "tokens": token_by_token(run),
        "training": answers.during_training(run),
        "time": sections.time(run),
        "data": sections.data(run),
        "checked": checked(run),
        "settings": settings(run),
        "run": run,
        "algorithm": run.algorithm,
        "facts": _facts(run),
        "headline": _drawn([_headline(run)])[0],
        "cards": [card for stage in run.stages() if (card := _card(run, stage))],
        "extremes": answers.extremes(run),
        "command": command(run),
        "code": code(run),
        "versions": _versions(run),
    }


def _comparison(one: RecordedRun, two: RecordedRun) -> dict[str, Any]:
    runs = [one, two]
    names = stage_names(runs)
    verdicts = [(stage, [_card(run, stage) for run in runs]) for stage in names]
    return {
        "runs": list(zip(runs, charts.RUN_COLOURS, _drawn([_headline(run) for run in runs]), strict=True)),
        "verdicts": [(names[stage], cards) for stage, cards in verdicts if any(cards)],
        "algorithm": algorithms(runs),
        "differences": differences(one, two),
        "curves": charts.curves(runs, with_gold=True),
        "frontier": charts.frontier(runs),
        "margins": [
            (run, colour, figure)
            for run, colour in zip(runs, charts.RUN_COLOURS, strict=True)
            if (figure := charts.margins(run, colour))
        ],
        "same_prompts": answers.same_prompts(one, two),
    }


@dataclass(frozen=True)
class Card:
    """A stage's verdict."""

    title: str
    status: str
    text: str
    warnings: list[str]
    seconds: float
    unfit_for: str = ""

    @property
    def kind(self) -> str:
        """The status, or that a warning stands beside a passed one."""
        return "warned" if self.status == "passed" and self.unfit_for else self.status


def _card(run: RecordedRun, stage: str) -> Card | None:
    """The verdict of a finished stage, or how far an unfinished one came; None before it began."""
    entry = run.get("stages", stage)
    if isinstance(entry, dict):
        return Card(
            stage_names([run])[stage],
            str(entry.get("status", "finished")),
            str(entry.get("verdict") or ""),
            _texts(entry.get("warnings")),
            number(entry.get("seconds")),
            "; ".join(_texts(entry.get("unfit_for"))),
        )
    rows = run.metrics[stage]
    if not rows:
        return None
    planned = run.number("config", "rl", "steps") if stage == "rl" else math.nan
    of = f" of {planned:.0f}" if math.isfinite(planned) else ""
    status = "running" if run.status == "running" else "unfinished"
    text = f"{len(rows)}{of} steps so far, no verdict"
    return Card(stage_names([run])[stage], status, text, run.warnings[stage], math.nan)


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


@dataclass(frozen=True)
class Headline:
    """The one figure, its interval, and the same as positions in percent of a line, which two runs may share."""

    figure: str
    what: str
    text: str
    tone: str  # good, bad, even
    low: str = ""
    high: str = ""
    measured: tuple[float, float, float, float] | None = None  # zero, low, value, high
    track: tuple[float, float, float, float] | None = None  # the same on the line
    judge: str = ""


def _headline(run: RecordedRun) -> Headline | None:
    """The gain by the best judge there is: gold, else the held-out reward, else what the last stage measured."""
    before, after = run.number("summary", "gold_sft"), run.number("summary", "gold_rl")
    interval = numbers(run.get("summary", "gold_gain_ci95"))
    gain = run.number("summary", "gold_gain")
    judge = run.get("stages", "rl", "final_judge")
    judge = str(judge) if judge else ""
    if math.isfinite(gain) and len(interval) == 2:
        text = f"Mean gold score on held-out tasks: {before:.3f} with the SFT model, {after:.3f} after {run.algorithm}."
        return _gain(gain, interval, "gain in gold score", text, judge)
    before, after = run.number("summary", "reward_mean_first"), run.number("summary", "reward_mean_last")
    interval = numbers(run.get("summary", "reward_gain_ci95"))
    if math.isfinite(after - before) and len(interval) == 2:
        unit = _reward_unit(run)
        text = (
            f"Mean reward on held-out prompts: {_signed(before)} with the SFT model, {_signed(after)} after "
            f"{run.algorithm}{f', {unit}' if unit else ''}."
        )
        return _gain(after - before, interval, "gain in held-out reward", text, judge)
    accuracy = run.get("stages", "reward", "report", "accuracy")
    value, low, high = (
        number(accuracy.get(key)) if isinstance(accuracy, dict) else math.nan for key in ("value", "low", "high")
    )
    if math.isfinite(value + low + high):
        tone = "good" if low > 0.5 else "even"
        text = "Held-out preferences that the reward model gets right; guessing gets 50 %."
        interval_text = (_percent(low), _percent(high))
        what = "accuracy of the reward model"
        return Headline(_percent(value), what, text, tone, *interval_text, (0.5, low, value, high))
    first, last = run.number("summary", "sft_loss_first"), run.number("summary", "sft_loss_last")
    if math.isfinite(first + last):
        tone = "good" if last < first else "bad"
        text = f"From {first:.3f} to {last:.3f} nats per token: perplexity {math.exp(min(last, 50)):.2f}."
        return Headline(_signed(last - first, 2), "change of the held-out loss", text, tone)
    return None


def _reward_unit(run: RecordedRun) -> str:
    """What a reward of 1 is; empty where the run does not say."""
    return str(run.get("stages", "rl", "report", "reward_unit") or "")


def _gain(gain: float, interval: Sequence[float], what: str, text: str, judge: str) -> Headline:
    low, high = interval
    tone = "good" if low > 0 else "bad" if high < 0 else "even"
    word = {"good": "Better.", "bad": "Worse.", "even": "No clear difference."}[tone]
    measured = (0.0, low, gain, high)
    return Headline(_signed(gain), what, f"{word} {text}", tone, _signed(low), _signed(high), measured, judge=judge)


def _drawn(headlines: Sequence[Headline | None]) -> list[Headline | None]:
    """The headlines with their tracks; those that measure the same have one scale, which holds all with some room."""
    drawn: list[Headline | None] = []
    for headline in headlines:
        if headline is None or headline.measured is None:
            drawn.append(headline)
            continue
        alike = [each.measured for each in headlines if each and each.measured and each.what == headline.what]
        left, right = min(map(min, alike)), max(map(max, alike))
        room = 0.12 * (right - left) or 1.0
        scale = 100 / (right - left + 2 * room)
        zero, low, value, high = (round((x - left + room) * scale, 2) for x in headline.measured)
        drawn.append(replace(headline, track=(zero, low, value, high)))
    return drawn


def _facts(run: RecordedRun) -> list[str]:
    """The line under the name: recipe, model, seed, duration."""
    recipe, model, seed = run.get("recipe"), run.get("config", "actor_model"), run.get("config", "seed")
    seconds = run.number("summary", "seconds")
    return [
        *([f"recipe {recipe}"] if recipe and recipe != "defaults" else []),
        *([str(model)] if model else ["a model from scratch"] if run.get("config", "world") else []),
        *([f"seed {seed}"] if seed is not None else []),
        *([duration(seconds)] if math.isfinite(seconds) else []),
    ]


def _versions(run: RecordedRun) -> list[tuple[str, str]]:
    versions = run.get("versions")
    rows = [(str(name), str(value)) for name, value in versions.items()] if isinstance(versions, dict) else []
    others = (("commit", run.get("commit")), ("threads", run.get("threads")))
    return rows + [(name, str(value)) for name, value in others if value is not None]


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _plain(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def _duration(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else ""


def _typeset(text: str) -> str:
    """A sentence of chatsmith's own with arrows and minus signs as they are printed."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text.replace("->", "→"))
