"""The page's smaller sections: reward model, gold score, time, data. What a run does not say is left out."""

import math
from collections import Counter
from statistics import fmean
from typing import Any

from chatsmith.errors import RunError
from chatsmith.files.received import LONGEST_LINES, read_bytes
from chatsmith.report import charts
from chatsmith.report.reading import RecordedRun
from chatsmith.runs.manifest import Share
from chatsmith.stages.table import REWARD, RL, TABLE

COMPONENTS = {"ended": "ended by itself", "right_on_polite_prompts": "right, on polite prompts"}
PHASES = {"rollout": "generating", "score": "scoring", "estimate": "advantages", "update": "updating", "other": "other"}
LISTED_DROPS = 20


def reward(run: RecordedRun) -> dict[str, Any]:
    """Figures of the reward model; empty if there are none."""
    entry = run.entry(REWARD)
    report = entry.report
    by_source = report.accuracy_by_source if len(report.accuracy_by_source) > 1 else {}
    groups = {
        "Held-out preferences": {
            "reward model": report.accuracy,
            f"rule “{report.length_rule}”": report.length_rule_accuracy,
        },
        "By source": by_source,
        "By aspect": {name: Share(value=value) for name, value in entry.accuracy_by_aspect.items()},
    }
    shown = {title: [(n, bar) for n, bar in bars.items() if 0 <= bar.value <= 1] for title, bars in groups.items()}
    figures = (
        ("correlation of score and length", report.length_correlation, "{:+.2f}"),
        ("calibration error", report.calibration_error, "{:.2f}"),
        ("held-out pairs", report.pairs, "{:.0f}"),
    )
    found = {
        "bars": {title: bars for title, bars in shown.items() if bars},
        "margins": charts.margins(run, "one"),
        "reliability": charts.reliability(run, "one"),
        "figures": [(n, text.format(x).replace("-", "−")) for n, x, text in figures if math.isfinite(x)],
    }
    return found if any(found.values()) else {}


def gold(run: RecordedRun) -> list[tuple[str, float, float]]:
    """Name, before and after of each part of the gold score, the whole last."""
    summary = run.manifest.summary
    parts = {COMPONENTS.get(name, name.replace("_", " ")): pair for name, pair in summary.gold_components.items()}
    parts |= {"gold score": [summary.gold_sft, summary.gold_rl], "gold score, greedy answers": summary.gold_greedy}
    return [(name, before, after) for name, (before, after) in parts.items() if math.isfinite(before + after)]


def time(run: RecordedRun) -> dict[str, Any]:
    """Seconds per stage, and where those of stage 3 went; empty if nothing is known."""
    taken = [(stage.heading.replace("PPO", run.algorithm), run.entry(stage).seconds) for stage in TABLE]
    stages = [(name, seconds) for name, seconds in taken if seconds > 0]
    rest = run.manifest.summary.seconds - sum(seconds for _, seconds in stages)
    if stages and rest > 0:
        stages.append(("the rest: data, measuring, saving", rest))
    speeds = (
        ("generating", "rollout/tokens_per_s", "{:,.0f} tokens/s", fmean),
        ("updating", "update/tokens_per_s", "{:,.0f} tokens/s", fmean),
        (f"whole {run.algorithm} step", "step/tokens_per_s", "{:,.0f} tokens/s", fmean),
        ("of the machine’s peak", "step/mfu", "{:.0%}", fmean),
        ("memory at its peak", "memory/peak_gib", "{:.2f} GiB", max),
    )
    measured = ((name, run.finite(RL.name, metric), text, of) for name, metric, text, of in speeds)
    found = {
        "stages": stages,
        "phases": [(name, s) for each, name in PHASES.items() if (s := sum(run.finite(RL.name, f"time/{each}_s"))) > 0],
        "speeds": [(name, text.format(of(values))) for name, values, text, of in measured if values],
    }
    return found if any(found.values()) else {}


def data(run: RecordedRun) -> dict[str, Any]:
    """Sources, what the task world made, and records too long for a stage; empty if nothing is recorded."""
    files = {
        "demonstrations": "data/demonstrations.jsonl",
        f"prompts for {run.algorithm}": "data/prompts.jsonl",
        "preferences": "label/preferences.jsonl",
    }
    made = [(name, count) for name, file in files.items() if (count := _lines(run, file))]
    entries = ((stage.heading.replace("PPO", run.algorithm), run.entry(stage)) for stage in TABLE)
    too_long = [(name, max(entry.dropped_too_long, entry.report.dropped_too_long)) for name, entry in entries]
    reasons = [(source, Counter(one.reason for one in source.dropped)) for source in run.manifest.data]
    found = {
        "sources": [(source, counted.most_common(LISTED_DROPS)) for source, counted in reasons],
        "made": made if run.manifest.config.world else [],
        "too_long": [(name, count) for name, count in too_long if count],
    }
    return found | {"listed": LISTED_DROPS} if any(found.values()) else {}


def _lines(run: RecordedRun, file: str) -> int:
    try:
        return read_bytes(run.directory / file, limit=LONGEST_LINES, refuse=RunError).count(b"\n")
    except FileNotFoundError:
        return 0
