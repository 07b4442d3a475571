"""The page's smaller sections: reward model, gold score, time, data. What a run does not say is left out."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.report import charts
from chatsmith.report.reading import RecordedRun, Row, algorithms, count_lines, number, numbers
from chatsmith.stages.table import TABLE

COMPONENTS = {
    "right": "right",
    "polite": "polite",
    "concise": "concise",
    "ended": "ended by itself",
    "right_on_polite_prompts": "right, on polite prompts",
}
PHASES = {"rollout": "generating", "score": "scoring", "estimate": "advantages", "update": "updating", "other": "other"}
LISTED_DROPS = 20


def stage_names(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """What is above a stage's part of the page."""
    return {stage.name: stage.heading.replace("PPO", algorithms(runs)) for stage in TABLE}


@dataclass(frozen=True)
class Bar:
    """A share with its interval (NaN where there is none)."""

    name: str
    value: float
    low: float
    high: float
    is_rule: bool  # to compare with, not a model


def _bar(name: str, value: Any, *, is_rule: bool = False) -> Bar | None:
    """From a number, or from an object with `value`, `low`, `high`."""
    if not isinstance(value, dict):
        value = {"value": value}
    value, low, high = (number(value.get(key)) for key in ("value", "low", "high"))
    bar = Bar(name, value, low, high, is_rule)
    return bar if 0 <= bar.value <= 1 else None


def _bars(named: Any) -> list[Bar]:
    pairs = named.items() if isinstance(named, dict) else ()
    return [bar for name, value in pairs if (bar := _bar(str(name), value))]


def reward(run: RecordedRun) -> dict[str, Any]:
    """Figures of the reward model; empty if there are none."""
    report = run.get("stages", "reward", "report")
    if not isinstance(report, dict):
        return {}
    rule = str(report.get("length_rule") or "")
    overall = [
        _bar("reward model", report.get("accuracy")),
        _bar(f"rule “{rule}”", report.get("length_rule_accuracy"), is_rule=True),
    ]
    by_source = _bars(report.get("accuracy_by_source"))
    groups = {
        "Held-out preferences": [bar for bar in overall if bar],
        "By source": by_source if len(by_source) > 1 else [],
        "By aspect": _bars(run.get("stages", "reward", "accuracy_by_aspect")),
    }
    found = {
        "bars": {name: bars for name, bars in groups.items() if bars},
        "margins": charts.margins(run, "one"),
        "reliability": charts.reliability(run, "one"),
        "figures": [
            (name, text)
            for name, value, text in (
                ("correlation of score and length", number(report.get("length_correlation")), "{:+.2f}"),
                ("calibration error", number(report.get("calibration_error")), "{:.2f}"),
                ("held-out pairs", number(report.get("pairs")), "{:.0f}"),
            )
            if math.isfinite(value)
            for text in (text.format(value).replace("-", "−"),)
        ],
    }
    return found if any(found.values()) else {}


def gold(run: RecordedRun) -> list[tuple[str, float, float]]:
    """Name, before and after of each part of the gold score, the whole last."""
    summary = run.get("summary")
    components = summary.get("gold_components") if isinstance(summary, dict) else None
    rows = [
        (COMPONENTS.get(name, str(name).replace("_", " ")), numbers(pair))
        for name, pair in (components.items() if isinstance(components, dict) else ())
    ]
    rows.append(("gold score", [run.number("summary", "gold_sft"), run.number("summary", "gold_rl")]))
    rows.append(("gold score, greedy answers", numbers(run.get("summary", "gold_greedy"))))
    return [(name, pair[0], pair[1]) for name, pair in rows if len(pair) == 2 and math.isfinite(sum(pair))]


def time(run: RecordedRun) -> dict[str, Any]:
    """Seconds per stage, and where those of stage 3 went; empty if nothing is known."""
    stages = [(name, run.number("stages", stage, "seconds")) for stage, name in stage_names([run]).items()]
    known = [(name, seconds) for name, seconds in stages if seconds > 0]
    total = run.number("summary", "seconds")
    rest = total - sum(seconds for _, seconds in known)
    if known and rest > 0:
        known.append(("the rest: data, measuring, saving", rest))
    rows = run.metrics["rl"]
    phases = [(name, sum(_values(rows, f"time/{phase}_s"))) for phase, name in PHASES.items()]
    speeds = [
        ("generating", _mean(rows, "rollout/tokens_per_s"), "{:,.0f} tokens/s"),
        ("updating", _mean(rows, "update/tokens_per_s"), "{:,.0f} tokens/s"),
        (f"whole {run.algorithm} step", _mean(rows, "step/tokens_per_s"), "{:,.0f} tokens/s"),
        ("of the machine’s peak", _mean(rows, "step/mfu"), "{:.0%}"),
        ("memory at its peak", max(_values(rows, "memory/peak_gib"), default=math.nan), "{:.2f} GiB"),
    ]
    found = {
        "stages": known,
        "phases": [(name, seconds) for name, seconds in phases if seconds > 0],
        "speeds": [(name, text.format(value)) for name, value, text in speeds if math.isfinite(value)],
    }
    return found if any(found.values()) else {}


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [value for row in rows if math.isfinite(value := number(row.get(metric)))]


def _mean(rows: Sequence[Row], metric: str) -> float:
    values = _values(rows, metric)
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Source:
    """A data source: what was read of it, and what was not."""

    name: str
    records: str
    licence: str
    reasons: list[tuple[str, int]]
    dropped: list[tuple[str, str]]  # origin and reason of the first ones
    left_out: int


def data(run: RecordedRun) -> dict[str, Any]:
    """Sources, what the task world made, and records too long for a stage; empty if nothing is recorded."""
    entries = run.get("data")
    made = [
        (name, count)
        for name, path in (
            ("demonstrations", "data/demonstrations.jsonl"),
            (f"prompts for {run.algorithm}", "data/prompts.jsonl"),
            ("preferences", "reward/preferences.jsonl"),
        )
        if (count := count_lines(run.directory / path))
    ]
    too_long = {
        name: max(
            (
                number(value)
                for value in (
                    run.get("stages", stage, "dropped_too_long"),
                    run.get("stages", stage, "report", "dropped_too_long"),
                )
                if number(value) > 0
            ),
            default=0,
        )
        for stage, name in stage_names([run]).items()
    }
    found = {
        "sources": [_source(entry) for entry in entries if isinstance(entry, dict)]
        if isinstance(entries, list)
        else [],
        "made": made if run.get("config", "world") else [],
        "noise": run.number("config", "world", "label_noise"),
        "too_long": [(name, int(count)) for name, count in too_long.items() if count],
    }
    return found if found["sources"] or found["made"] or found["too_long"] else {}


def _source(entry: Row) -> Source:
    listed = entry.get("dropped")
    dropped = [
        (str(one.get("origin", "")), str(one.get("reason", "")))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict)
    ]
    records, licence = number(entry.get("records")), entry.get("licence")
    return Source(
        str(entry.get("spec", "")),
        f"{records:,.0f}" if math.isfinite(records) else "",
        str(licence) if licence else "the source states none",
        Counter(reason for _, reason in dropped).most_common(LISTED_DROPS),
        dropped[:LISTED_DROPS],
        max(0, len(dropped) - LISTED_DROPS),
    )
