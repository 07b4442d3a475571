"""Which metrics are drawn, of one run or of two in the same diagram, and what a reader should know of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from chatsmith.evaluate import CLEAR_CHANGE, turning_point
from chatsmith.report import figures
from chatsmith.report.figures import Line
from chatsmith.report.reading import Curve, RecordedRun, algorithms
from chatsmith.stages.table import PAIRS, REWARD, RL, SFT, Stage

RUN_COLOURS = ("one", "two")  # of runs beside each other, and of two metrics of one run


@dataclass(frozen=True)
class Chart:
    """One small diagram: metrics of a stage over its steps, each with its short name."""

    stage: Stage
    title: str  # by which the template has words for it
    metrics: tuple[tuple[str, str], ...]
    percent: bool = False
    log: bool = False
    floor: float | None = None
    is_reward: bool = False  # one of several, named by the user


CHARTS = (
    Chart(SFT, "SFT loss", (("sft/loss", "training"), ("sft/held_out_loss", "held out"))),
    Chart(PAIRS, "Loss over pairs", (("pairs/loss", "training"),)),
    Chart(
        PAIRS,
        "Pairs told apart",
        (("pairs/held_out_accuracy", "held out"), ("pairs/accuracy", "training")),
        percent=True,
    ),
    Chart(PAIRS, "Likelihood gained", (("pairs/chosen", "better answers"), ("pairs/rejected", "worse answers"))),
    Chart(REWARD, "Reward model loss", (("reward/loss", "training"),)),
    Chart(REWARD, "Reward model accuracy", (("reward/accuracy", "accuracy"),), percent=True),
    Chart(RL, "Reward", (("rl/reward_mean", "reward"),)),
    Chart(RL, "KL per token", (("rl/kl", "KL"),)),
    Chart(RL, "KL per answer", (("rl/kl_sequence", "KL"),)),
    Chart(RL, "Entropy", (("rl/entropy", "entropy"),)),
    Chart(RL, "Answer length", (("rl/answer_length", "length"),)),
    Chart(RL, "How answers end", (("rl/eos_rate", "by themselves"), ("rl/truncation_rate", "cut off")), percent=True),
    Chart(RL, "Explained variance", (("rl/explained_variance", "critic"),), floor=-1.1),
    Chart(RL, "Clip fraction", (("rl/clip_fraction", "tokens"),), percent=True),
    Chart(RL, "Gradient norm", (("rl/grad_norm_actor", "actor"), ("rl/grad_norm_critic", "critic")), log=True),
    Chart(RL, "Loss on mixed-in text", (("rl/ptx_loss", "loss"),)),
)
GOLD = Chart(RL, "Gold score", (("gold/total", ""),))
RARE = ("sft/held_out_loss", "pairs/held_out_accuracy", "gold/total")  # measured a few times per stage


def draw(chart: Chart, runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """The chart of one run, or of two in two colours, with its keys and last value; empty where no run has it."""
    lines, keys, last = [], [], []
    for run_index, run in enumerate(runs):
        for index, (metric, name) in enumerate(chart.metrics):
            x, y = gold_curve(run) if metric == "gold/total" else run.column(chart.stage.name, metric)
            if not any(map(math.isfinite, y)):
                continue
            colour = RUN_COLOURS[run_index if len(runs) > 1 else index]
            dashed = index > 0 and len(runs) > 1
            lines.append(Line(x, y, colour, dashed, marked=metric in RARE))
            if len(chart.metrics) > 1 and (dashed or len(runs) == 1 or not run_index):
                keys.append((name, "muted" if len(runs) > 1 else colour, dashed))
            settled = figures.running_mean(y) if figures.is_noisy(y) else y  # as the eye reads the bold curve
            last.append(next(value for value in reversed(settled) if math.isfinite(value)))
    if not lines:
        return {}
    shown = "" if len(chart.metrics) > 1 or len(runs) > 1 else f"{last[0]:.0%}" if chart.percent else f"{last[0]:.3g}"
    name = f"{chart.stage.name} {chart.title} {chart.metrics[0][0]}"
    svg = figures.curves(name, lines, percent=chart.percent, log=chart.log, floor=chart.floor)
    return {"chart": chart, "svg": svg, "key": list(dict.fromkeys(keys)), "last": shown}


def curves(runs: Sequence[RecordedRun], *, with_gold: bool) -> dict[str, list[dict[str, Any]]]:
    """The diagrams in two groups, before the last stage and of it; a group without any is left out."""
    ends, last = [run.answering for run in runs], algorithms(runs)
    groups: dict[str, list[dict[str, Any]]] = {f"Before {last}": []}
    for chart in (*([GOLD] if with_gold else []), *CHARTS, *_rewards(runs)):
        if figure := draw(chart, runs):
            groups.setdefault(last if chart.stage in ends else f"Before {last}", []).append(figure)
    return {title: figures for title, figures in groups.items() if figures}


def _rewards(runs: Sequence[RecordedRun]) -> list[Chart]:
    """One chart per reward where a run has several."""
    keys = dict.fromkeys(key for run in runs for key in run.metrics[RL.name].curves if key.startswith("reward/"))
    names = [key for key in keys if not key.endswith("_excluded")]
    charts = [Chart(RL, name.removeprefix("reward/"), ((name, ""),), is_reward=True) for name in names]
    return charts if len(charts) > 1 else []


def gold_curve(run: RecordedRun) -> Curve:
    """Steps taken and gold score then; the last point is the finished policy's."""
    x, y = run.column(RL.name, "gold/total")
    end, last = run.entry(RL).report.steps, run.manifest.summary.gold_rl
    return ([*x, end], [*y, last]) if end and math.isfinite(last) else (x, y)


def second_act(run: RecordedRun) -> dict[str, Any]:
    """Reward and what it was good for, or what it cost, over the same steps.

    Beside the reward stands the gold score where there is a judge, else the KL; empty without stage 3.
    """
    steps, rewards = run.column(RL.name, "rl/reward_mean")
    known = [(step, reward) for step, reward in zip(steps, rewards, strict=True) if math.isfinite(reward)]
    points = [(step, score) for step, score in zip(*gold_curve(run), strict=True) if math.isfinite(score)]
    judged = len(points) > 1
    other = points if judged else list(zip(*run.column(RL.name, "rl/kl_sequence"), strict=True))
    if len(known) < 2 or sum(math.isfinite(value) for _, value in other) < 2:
        return {}
    last = run.manifest.summary.reward_mean_last  # the verdict ends with the held-out reward, too
    curve = [(step, gold, min(known, key=lambda pair: abs(pair[0] - step))[1]) for step, gold in points]
    turn = turning_point(curve, points[-1][1], last if math.isfinite(last) else known[-1][1]) if judged else None
    x, y = zip(*other, strict=True)
    lines = Line(steps, rewards, "one"), Line(x, y, "two", marked=judged)
    labels = ("reward", "gold score" if judged else "KL per answer, nats")
    wide, narrow = (
        figures.second_act(f"second act {size[0]}", size, *lines, labels, turn[0] if turn else None)
        for size in (figures.WIDE, figures.NARROW)
    )
    facts = {"ends": (points[0][1], points[-1][1]) if judged else (), "turn": turn, "clear_change": CLEAR_CHANGE}
    return facts | {"wide": wide, "narrow": narrow}


def frontier(runs: Sequence[RecordedRun]) -> Markup | None:
    """Reward over KL per answer, step by step."""
    paths = []
    for colour, run in zip(RUN_COLOURS, runs, strict=False):
        rewards = dict(zip(*run.column(RL.name, "rl/reward_mean"), strict=True))
        steps, kl = run.column(RL.name, "rl/kl_sequence")
        path = Line(kl, [rewards.get(step, math.nan) for step in steps], colour)
        if sum(math.isfinite(x + y) for x, y in zip(path.x, path.y, strict=True)) > 1:
            paths.append(path)
    return figures.frontier("frontier", paths) if paths else None


def margins(run: RecordedRun, colour: str) -> Markup | None:
    """Histogram of the reward model's margins on held-out pairs."""
    counts, edges = run.entry(REWARD).report.margins.counts, run.entry(REWARD).report.margins.edges
    is_whole = counts and len(edges) == len(counts) + 1 and sorted(set(edges)) == edges
    return figures.margins(f"margins {colour}", counts, edges, colour) if is_whole else None


def reliability(run: RecordedRun, colour: str) -> Markup | None:
    """The reward model's reliability diagram on held-out pairs."""
    rows = run.entry(REWARD).report.reliability
    groups = [(row.confidence, row.accuracy, row.pairs) for row in rows if row.pairs]
    groups = [group for group in groups if all(map(math.isfinite, group))]
    return figures.reliability(f"reliability {colour}", groups, colour) if groups else None
