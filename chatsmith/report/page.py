"""`report.html`: one file that holds everything a run has to say, without network and scripts.

What a run holds (prompts, answers, data, configuration) is text to be shown and nothing else: the template escapes
all of it, and a policy in the page forbids whatever is not style.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from chatsmith.errors import RunError
from chatsmith.files.checkpoint import save_text
from chatsmith.report import answers, charts, sections
from chatsmith.report.data import checked
from chatsmith.report.reading import RecordedRun, harmless, read_run
from chatsmith.report.settings import code, command, differences, settings
from chatsmith.report.tokens import share, token_by_token, visible
from chatsmith.screen.text import duration
from chatsmith.stages.table import RL, TABLE, Stage


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Write a run's page, to `report.html` in its directory unless told otherwise; says where it is.

    Raises:
        RunError: if there is no run, or the page cannot be written.
    """
    run = read_run(run_directory)
    return _write(output or run_directory / "report.html", "page.html", _page(run))


def write_comparison(run_directory: Path, other_directory: Path, output: Path | None = None) -> Path:
    """Write two runs beside each other, to `report-vs-OTHER.html` in the first one's directory unless told otherwise.

    Raises:
        RunError: if there is no run, or the page cannot be written.
    """
    one, two = read_run(run_directory), read_run(other_directory)
    name = re.sub(r"[^\w.-]+", "-", two.name)
    return _write(output or run_directory / f"report-vs-{name}.html", "comparison.html", _comparison(one, two))


def _write(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if path.is_dir():
        raise RunError(f"{path}: a directory. Give --output a file.")
    environment = Environment(
        loader=PackageLoader("chatsmith.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {
        "signed": lambda value, digits=3: _written(value, f"+.{digits}f"),
        "plain": lambda value, digits=3: _written(value, f".{digits}f"),
        "percent": lambda value: f"{100 * value:.1f} %" if math.isfinite(value) else "–",
        "duration": lambda seconds: duration(seconds) if math.isfinite(seconds) else "",
        "perplexity": lambda loss: f"{math.exp(min(loss, 50)):.2f}",
        "typeset": _typeset,
        "share": share,
        "visible": visible,
    }
    save_text(path, environment.get_template(template).render(context))
    return path


def _page(run: RecordedRun) -> dict[str, Any]:
    """Everything the page shows; an empty value leaves its section out."""
    return {
        "act": charts.second_act(run),
        "curves": charts.curves([run], with_gold=False),
        "frontier": charts.frontier([run]),
        "reward": sections.reward(run),
        "gold": sections.gold(run),
        "before_after": answers.before_and_after(run),
        "tokens": token_by_token(run),
        "training": answers.during_training(run),
        "time": sections.time(run),
        "data": sections.data(run),
        "checked": checked(run),
        "settings": settings(run),
        "run": run,
        "headline": _drawn([_headline(run)])[0],
        "cards": [card for stage in run.stages if (card := _card(run, stage))],
        "extremes": answers.extremes(run),
        "command": command(run),
        "code": code(run),
    }


def _comparison(one: RecordedRun, two: RecordedRun) -> dict[str, Any]:
    runs = [one, two]
    coloured = list(zip(runs, charts.RUN_COLOURS, strict=True))
    verdicts = [[_card(run, stage) for run in runs] for stage in TABLE]
    return {
        "runs": [(*each, line) for each, line in zip(coloured, _drawn([_headline(run) for run in runs]), strict=True)],
        "verdicts": [cards for cards in verdicts if any(cards)],
        "differences": differences(one, two),
        "curves": charts.curves(runs, with_gold=True),
        "frontier": charts.frontier(runs),
        "margins": [(*each, figure) for each in coloured if (figure := charts.margins(*each))],
        "same_prompts": answers.same_prompts(one, two),
    }


def _card(run: RecordedRun, stage: Stage) -> dict[str, Any]:
    """The verdict of a finished stage, or how far an unfinished one came; empty before it began."""
    card: dict[str, Any] = {"title": stage.heading.replace("PPO", run.algorithm), "entry": run.entry(stage)}
    if stage.name in run.manifest.stages:
        return card | {"kind": card["entry"].shown, "warnings": card["entry"].warnings}
    steps, planned = run.metrics[stage.name].steps, run.manifest.config.rl.steps if stage is RL else None
    said = f"{steps}{f' of {planned}' if planned is not None else ''} steps so far, no verdict"
    kind = "running" if run.status == "running" else "unfinished"
    return card | {"kind": kind, "said": said, "warnings": run.warnings[stage.name]} if steps else {}


def _headline(run: RecordedRun) -> dict[str, Any]:
    """The one figure, and where it has an interval, the ends of its line: zero, low, value, high.

    It is the gain by the best judge there is (gold, else the held-out reward), else what the last stage measured; empty
    where there is none.
    """
    summary = run.manifest.summary
    first, last, reward = summary.reward_mean_first, summary.reward_mean_last, summary.reward_gain_ci95
    found: list[dict[str, Any]] = [
        {"kind": kind, "before": before, "after": after, "ends": (0.0, interval[0], gain, interval[1])}
        for kind, before, after, gain, interval in (
            ("gold", summary.gold_sft, summary.gold_rl, summary.gold_gain, summary.gold_gain_ci95),
            ("reward", first, last, last - first, reward),
        )
    ]
    for stage in reversed(run.stages):
        share = run.entry(stage).report.accuracy
        ends = (0.5, share.low, share.value, share.high)
        found.append({"kind": "accuracy", "stage": stage, "ends": ends})
    for each in found:
        zero, low, value, high = each["ends"]
        if math.isfinite(low + value + high):
            worse = high < zero and each["kind"] != "accuracy"
            return each | {"value": value, "tone": "good" if low > zero else "bad" if worse else "even"}
    first, last = summary.sft_loss_first, summary.sft_loss_last
    fell = {"before": first, "after": last, "value": last - first, "tone": "good" if last < first else "bad"}
    return fell | {"kind": "loss", "ends": ()} if math.isfinite(first + last) else {}


def _drawn(headlines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The headlines with their ends (zero, low, value, high) in percent of a line, which two that measure the same
    share, and which holds all with some room."""
    drawn = []
    for headline in headlines:
        alike = [x for each in headlines if each and each["kind"] == headline.get("kind") for x in each["ends"]]
        left, right = min(alike, default=0.0), max(alike, default=0.0)
        room = 0.12 * (right - left) or 1.0
        scale = 100 / (right - left + 2 * room)
        track = [round((x - left + room) * scale, 2) for x in headline.get("ends", ())]
        drawn.append(headline and headline | {"track": track})
    return drawn


def _written(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else "–"


def _typeset(text: str) -> str:
    """A sentence of chatsmith's own with arrows and minus signs as they are printed."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text.replace("->", "→"))
