"""Which metrics are drawn, of one run or of two in the same diagram, and what a reader should know of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from chatsmith.evaluate import CLEAR_CHANGE, turning_point
from chatsmith.report import figures
from chatsmith.report.figures import Line
from chatsmith.report.reading import RecordedRun, algorithms, number, numbers
from chatsmith.stages.table import TABLE

RUN_COLOURS = ("one", "two")  # of runs beside each other, and of two metrics of one run


@dataclass(frozen=True)
class Chart:
    """One small diagram: metrics of a stage over its steps, each with its short name."""

    stage: str
    title: str
    about: str
    metrics: tuple[tuple[str, str], ...]
    unit: str = ""
    percent: bool = False
    log: bool = False
    floor: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A diagram with its caption."""

    title: str
    about: str
    unit: str
    svg: Markup
    keys: tuple[tuple[str, str, bool], ...] = ()  # name, colour, dashed
    last: str = ""


CHARTS = (
    Chart(
        "sft",
        "SFT loss",
        "How surprised the model is by good answers; held-out ones it never trained on.",
        (("sft/loss", "training"), ("sft/held_out_loss", "held out")),
        unit="nats per token",
    ),
    Chart("reward", "Reward model loss", "Of pairs of answers; 0.69 is guessing.", (("reward/loss", "training"),)),
    Chart(
        "reward",
        "Reward model accuracy",
        "Training pairs in which the better answer scores higher.",
        (("reward/accuracy", "accuracy"),),
        percent=True,
    ),
    Chart(
        "rl",
        "Reward",
        "What training maximises, without the price of KL, on the prompts it trains on: the figures of the verdict are "
        "of held-out ones. Where a reward model gives it, 0 is the mean of its scores over the SFT model's answers, "
        "and 1 their standard deviation.",
        (("rl/reward_mean", "reward"),),
    ),
    Chart(
        "rl",
        "KL per token",
        "How far the policy was from the SFT model before each step's update (k3, never negative). The verdict's KL is "
        "the finished policy's, on held-out prompts.",
        (("rl/kl", "KL"),),
        unit="nats",
    ),
    Chart(
        "rl",
        "KL per answer",
        "Summed over each answer, as the penalty counts it (k1): not the KL per token times the length.",
        (("rl/kl_sequence", "KL"),),
        unit="nats",
    ),
    Chart(
        "rl",
        "Entropy",
        "How open the choice of the next token is. Near 0 it always says the same.",
        (("rl/entropy", "entropy"),),
        unit="nats per token",
    ),
    Chart("rl", "Answer length", "With the token that ends it.", (("rl/answer_length", "length"),), unit="tokens"),
    Chart(
        "rl",
        "How answers end",
        "By themselves, or cut off at the limit.",
        (("rl/eos_rate", "by themselves"), ("rl/truncation_rate", "cut off")),
        percent=True,
    ),
    Chart(
        "rl",
        "Explained variance",
        "How much of the outcome the critic foresees: 1 is all, below 0 is worse than no critic.",
        (("rl/explained_variance", "critic"),),
        floor=-1.1,
    ),
    Chart(
        "rl",
        "Clip fraction",
        "Tokens on which one step changed the policy by more than it may.",
        (("rl/clip_fraction", "tokens"),),
        percent=True,
    ),
    Chart(
        "rl",
        "Gradient norm",
        "Before clipping.",
        (("rl/grad_norm_actor", "actor"), ("rl/grad_norm_critic", "critic")),
        log=True,
    ),
    Chart(
        "rl",
        "Loss on mixed-in text",
        "Whether the model forgets language while it learns to please.",
        (("rl/ptx_loss", "loss"),),
        unit="nats per token",
    ),
)
GOLD = Chart(
    "rl", "Gold score", "Of held-out tasks, by a judge in code that training never sees.", (("gold/total", ""),)
)
RARE = ("sft/held_out_loss", "gold/total")  # measured a few times per stage


def draw(chart: Chart, runs: Sequence[RecordedRun]) -> Drawn | None:
    """The chart of one run, or of two in two colours; None where no run has its metrics."""
    lines, keys, last = [], [], []
    for run_index, run in enumerate(runs):
        for index, (metric, name) in enumerate(chart.metrics):
            x, y = gold_curve(run) if metric == "gold/total" else run.column(chart.stage, metric)
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
        return None
    shown = "" if len(chart.metrics) > 1 or len(runs) > 1 else f"{last[0]:.0%}" if chart.percent else f"{last[0]:.3g}"
    name = f"{chart.stage} {chart.title} {chart.metrics[0][0]}"
    svg = figures.curves(name, lines, percent=chart.percent, log=chart.log, floor=chart.floor)
    return Drawn(chart.title, chart.about, chart.unit, Markup(svg), tuple(dict.fromkeys(keys)), shown)


def curves(runs: Sequence[RecordedRun], *, with_gold: bool) -> dict[str, list[Drawn]]:
    """The diagrams of the stages before stage 3, and of it; a group without any is left out."""
    charts = (*((GOLD,) if with_gold else ()), *CHARTS, *_rewards(runs))
    phases = {stage.name: stage.phase.replace("PPO", algorithms(runs)) for stage in TABLE}
    drawn: dict[str, list[Drawn]] = {phase: [] for phase in phases.values()}
    for chart in charts:
        figure = draw(chart, runs)
        if figure is not None:
            drawn[phases[chart.stage]].append(figure)
    return {group: figures for group, figures in drawn.items() if figures}


def _rewards(runs: Sequence[RecordedRun]) -> list[Chart]:
    """One chart per reward where a run has several."""
    names = dict.fromkeys(key for run in runs for row in run.metrics["rl"] for key in row if key.startswith("reward/"))
    about = "Mean raw value of one of the rewards that make up the reward."
    return [Chart("rl", name.removeprefix("reward/"), about, ((name, ""),)) for name in names] if len(names) > 1 else []


def gold_curve(run: RecordedRun) -> tuple[list[float], list[float]]:
    """Steps taken and gold score then; the last point is the finished policy's."""
    x, y = run.column("rl", "gold/total")
    end, last = run.number("stages", "rl", "report", "steps"), run.number("summary", "gold_rl")
    if math.isfinite(end) and math.isfinite(last):
        x, y = [*x, end], [*y, last]
    return x, y


@dataclass(frozen=True)
class SecondAct:
    """Reward and what it was good for, or what it cost, over the same steps."""

    title: str
    text: str
    wide: Markup
    narrow: Markup


def second_act(run: RecordedRun) -> SecondAct | None:
    """Reward with the gold score where there is a judge, else with the KL; None without stage 3."""
    steps, rewards = run.column("rl", "rl/reward_mean")
    if sum(map(math.isfinite, rewards)) < 2:
        return None
    x, y = gold_curve(run)
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    turn = None
    if len(points) > 1:
        title, labels = "Reward and gold score", ("reward", "gold score")
        # the verdict ends with the held-out reward, too
        held_out = run.number("summary", "reward_mean_last")
        turn, text = _judge_says(points, steps, rewards, held_out)
        first, before = points[0][1], run.number("summary", "gold_sft")
        if math.isfinite(before) and f"{first:.3f}" != f"{before:.3f}":
            text += (
                f" On the way one answer to each question is judged, at the ends two: the curve begins at {first:.3f}, "
                f"the figures of the SFT model say {before:.3f}."
            )
        other = Line([a for a, _ in points], [b for _, b in points], "two", marked=True)
    else:
        title, labels = "Reward, and its price", ("reward", "KL per answer, nats")
        text = (
            "No judge stands beside this run, so a rising reward alone does not say that answers became better. "
            "The further the policy goes from the SFT model (KL), the more of the gain may be a flaw of the reward."
        )
        other = Line(*run.column("rl", "rl/kl_sequence"), "two")
        if sum(map(math.isfinite, other.y)) < 2:
            return None
    reward = Line(steps, rewards, "one")
    wide, narrow = (
        Markup(figures.second_act(f"second act {size[0]}", size, reward, other, labels, turn))
        for size in (figures.WIDE, figures.NARROW)
    )
    return SecondAct(title, text, wide, narrow)


def _judge_says(
    points: Sequence[tuple[float, float]], steps: Sequence[float], rewards: Sequence[float], reward_last: float
) -> tuple[float | None, str]:
    """From which step on the gold score fell while the reward rose, and the story in words."""
    first, last = points[0][1], points[-1][1]
    finite = [(step, reward) for step, reward in zip(steps, rewards, strict=True) if math.isfinite(reward)]
    curve = [(step, gold, min(finite, key=lambda pair: abs(pair[0] - step))[1]) for step, gold in points]
    turn = turning_point(curve, last, reward_last if math.isfinite(reward_last) else finite[-1][1])
    intro = "The gold judge is code that training never sees. "
    if turn is not None:
        step, best, _ = turn
        return step, intro + (
            f"Over-optimised: the gold score was best after {step:.0f} steps ({best:.3f}) and fell to {last:.3f}, "
            "while the reward went on rising. What was maximised there is a flaw of the reward."
        )
    if last - first > CLEAR_CHANGE:
        return None, intro + f"It agrees with the reward: the gold score went from {first:.3f} to {last:.3f}."
    return None, intro + f"It sees little of what the reward sees: gold score {first:.3f} before, {last:.3f} after."


def frontier(runs: Sequence[RecordedRun]) -> Markup | None:
    """Reward over KL per answer, step by step."""
    paths = []
    for colour, run in zip(RUN_COLOURS, runs, strict=False):
        rows = [(number(row.get("rl/kl_sequence")), number(row.get("rl/reward_mean"))) for row in run.metrics["rl"]]
        if sum(math.isfinite(kl + reward) for kl, reward in rows) > 1:
            paths.append(Line([kl for kl, _ in rows], [reward for _, reward in rows], colour))
    return Markup(figures.frontier("frontier", paths)) if paths else None


def margins(run: RecordedRun, colour: str) -> Markup | None:
    """Histogram of the reward model's margins on held-out pairs."""
    counts = numbers(run.get("stages", "reward", "report", "margins", "counts"))
    edges = numbers(run.get("stages", "reward", "report", "margins", "edges"))
    if not counts or len(edges) != len(counts) + 1 or sorted(set(edges)) != edges:
        return None
    return Markup(figures.margins(f"margins {colour}", counts, edges, colour))


def reliability(run: RecordedRun, colour: str) -> Markup | None:
    """The reward model's reliability diagram on held-out pairs."""
    rows = run.get("stages", "reward", "report", "reliability")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    groups = [(number(row.get("confidence")), number(row.get("accuracy")), number(row.get("pairs"))) for row in rows]
    groups = [group for group in groups if all(map(math.isfinite, group)) and group[2] > 0]
    return Markup(figures.reliability(f"reliability {colour}", groups, colour)) if groups else None
