"""How good the assistant really is: gold scores on held-out tasks, for showing and never for training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from chatsmith.assistant import Assistant
from chatsmith.config import Config, WorldConfig
from chatsmith.engine.engine import Sampling
from chatsmith.evaluate import Interval, paired_difference, proportion
from chatsmith.models.reward import RewardModel
from chatsmith.screen.console import Screen
from chatsmith.stages.rollout import encode_questions, roll_out
from chatsmith.types import Sample
from chatsmith.verdicts import Judged
from chatsmith.world.judge import Gold, judge
from chatsmith.world.material import as_record, evaluation_tasks, gold, probes, prompt_tasks
from chatsmith.world.tasks import Task

SAMPLES = 2  # per task, averaged
TRADE_OFF = "right over polite"  # the one probe that weighs two aspects against each other
SHOWN = 10
COMPONENTS = tuple(field.name for field in fields(Gold) if field.name != "total")


@dataclass(frozen=True)
class GoldScores:
    """One model's gold scores per held-out task."""

    tasks: tuple[Task, ...]
    sampled: list[list[Gold]]  # per task, of SAMPLES answers at temperature 1
    greedy: list[Gold]  # per task
    answers: list[str]  # per task, the first sampled one

    def totals(self) -> list[float]:
        return [sum(g.total for g in golds) / len(golds) for golds in self.sampled]

    def component(self, name: str, *, polite_only: bool = False) -> float:
        kept = [golds for task, golds in zip(self.tasks, self.sampled, strict=True) if task.polite or not polite_only]
        values = [float(getattr(g, name)) for golds in kept for g in golds]
        return sum(values) / len(values)


def gold_scores(policy: Assistant, config: Config) -> GoldScores:
    """Let a model answer the held-out tasks, sampled at temperature 1 and greedily, and judge the answers."""
    tasks = evaluation_tasks()
    sampled = _answers(policy, tasks, config, Sampling(temperature=1.0), SAMPLES)
    greedy = _answers(policy, tasks, config, Sampling(temperature=0.0), 1)
    return GoldScores(
        tasks=tuple(tasks),
        sampled=[
            [gold(task, sample) for sample in sampled[SAMPLES * i : SAMPLES * (i + 1)]] for i, task in enumerate(tasks)
        ],
        greedy=[gold(task, sample) for task, sample in zip(tasks, greedy, strict=True)],
        answers=[sample.answer for sample in sampled[::SAMPLES]],
    )


def probe(policy: Assistant, config: Config) -> dict[str, float]:
    """Mean gold score and its components, of one sampled answer per held-out task; for the curve of a run."""
    tasks = evaluation_tasks()
    samples = _answers(policy, tasks, config, Sampling(temperature=1.0), 1)
    golds = [gold(task, sample) for task, sample in zip(tasks, samples, strict=True)]
    return {f"gold/{name}": sum(getattr(g, name) for g in golds) / len(golds) for name in ("total", *COMPONENTS)}


def judged(before: GoldScores, after: GoldScores, metrics: Sequence[dict[str, Any]]) -> Judged:
    """What the gold judge says of PPO: the gain, and the way there from the logged probes."""
    gain = paired_difference(before.totals(), after.totals())
    curve = [
        (row["step"], row["gold/total"], row["rl/reward_mean"])
        for row in metrics
        if row.get("gold/total") is not None and row["rl/reward_mean"] is not None
    ]
    return Judged(gain, sum(after.totals()) / len(after.tasks), tuple(curve))


def summary(before: GoldScores, after: GoldScores) -> dict[str, Any]:
    """The manifest's gold figures; sampled unless their name says greedy."""
    gain = paired_difference(before.totals(), after.totals())
    greedy = paired_difference([g.total for g in before.greedy], [g.total for g in after.greedy])
    components = {name: [before.component(name), after.component(name)] for name in COMPONENTS}
    components["right_on_polite_prompts"] = [
        before.component("right", polite_only=True),
        after.component("right", polite_only=True),
    ]
    return {
        "gold_sft": sum(before.totals()) / len(before.tasks),
        "gold_rl": sum(after.totals()) / len(after.tasks),
        "gold_gain": gain.value,
        "gold_gain_ci95": [gain.low, gain.high],
        "gold_components": components,
        "gold_greedy": [sum(g.total for g in scores.greedy) / len(scores.greedy) for scores in (before, after)],
        "gold_greedy_gain_ci95": [greedy.low, greedy.high],
    }


def marked(rows: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Rows of `samples.jsonl` with what gold knows of each answer: `sft_right`, `rl_right`, `ema_right`.

    Args:
        tasks: among them those that the rows' prompts ask.
    """
    asked = {task.prompt: task for task in tasks}
    return [
        row
        | {f"{name}_right": judge(asked[row["prompt"]], row[name], True).right == 1 for name in ("sft", "rl", "ema")}
        for row in rows
    ]


def accuracy_by_aspect(reward_model: RewardModel, seed: int) -> dict[str, Interval]:
    """How often the reward model prefers the better of two answers that differ in one aspect of gold alone."""
    return {
        aspect: _share_won(reward_model, [better for better, _ in pairs], [worse for _, worse in pairs])
        for aspect, pairs in probes(seed).items()
    }


def show(screen: Screen, before: GoldScores, after: GoldScores, figures: Mapping[str, Any]) -> None:
    """One task of each kind with both answers, then the scores."""
    first_of_kind = {(task.kind, task.polite): i for i, task in reversed(list(enumerate(before.tasks)))}
    rows = [
        (before.tasks[i].prompt, before.tasks[i].answer, before.answers[i], after.answers[i])
        for i in sorted(first_of_kind.values())[:SHOWN]
    ]
    screen.table(
        "Held-out questions, answered by the SFT and the PPO model", ("question", "right answer", "SFT", "PPO"), rows
    )
    scores = [
        (name.replace("_", " "), f"{one:.3f}", f"{two:.3f}", f"{two - one:+.3f}")
        for name, (one, two) in figures["gold_components"].items()
    ]
    low, high = figures["gold_gain_ci95"]
    greedy_one, greedy_two = figures["gold_greedy"]
    scores += [
        ("gold, greedy", f"{greedy_one:.3f}", f"{greedy_two:.3f}", f"{greedy_two - greedy_one:+.3f}"),
        (
            "gold, sampled",
            f"{figures['gold_sft']:.3f}",
            f"{figures['gold_rl']:.3f}",
            f"{figures['gold_gain']:+.3f} [{low:+.3f}, {high:+.3f}]",
        ),
    ]
    title = f"What the gold judge says about {len(before.tasks)} held-out questions"
    screen.table(title, ("score (0 to 1)", "SFT", "PPO", "gain [95 %]"), scores)


def show_aspects(screen: Screen, accuracies: Mapping[str, Interval]) -> None:
    """The reward model's accuracy by aspect: one total would hide what it does not see."""
    screen.table(
        "Does it see what matters? Accuracy on held-out pairs that differ in one aspect alone",
        ("aspect", "accuracy [95 %]"),
        [(aspect, f"{a.value:.0%} [{a.low:.0%}, {a.high:.0%}]") for aspect, a in accuracies.items()],
    )
    screen.line("")


def _share_won(reward_model: RewardModel, better: Sequence[Sample], worse: Sequence[Sample]) -> Interval:
    one, other = reward_model.scores(better), reward_model.scores(worse)
    return proportion(sum(a > b for a, b in zip(one, other, strict=True)), len(one))


def _answers(
    policy: Assistant, tasks: Sequence[Task], config: Config, sampling: Sampling, samples: int
) -> tuple[Sample, ...]:
    prompts = encode_questions(
        policy.tokenizer, [as_record(task) for task in tasks], stops=policy.stops, max_tokens=config.data.max_tokens
    )
    return roll_out(
        policy,
        prompts,
        range(len(tasks)),
        sampling,
        limit=config.rl.max_new_tokens,
        samples=samples,
        seed=(config.seed, "gold"),
    ).samples


@dataclass(frozen=True)
class WorldJudge:
    """The task world's, see `gold.GoldJudge`."""

    config: Config
    world: WorldConfig

    def probe(self, policy: Assistant) -> dict[str, float]:
        return probe(policy, self.config)

    def scores(self, policy: Assistant) -> GoldScores:
        return gold_scores(policy, self.config)

    def judged(self, before: GoldScores, after: GoldScores, metrics: Sequence[dict[str, Any]]) -> Judged:
        return judged(before, after, metrics)

    def summary(self, before: GoldScores, after: GoldScores) -> dict[str, Any]:
        return summary(before, after)

    def marked(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return marked(rows, prompt_tasks(self.config, self.world))

    def aspects(self, scorer: RewardModel) -> dict[str, Interval]:
        return accuracy_by_aspect(scorer, self.config.seed)

    def show(self, screen: Screen, before: GoldScores, after: GoldScores, summary: Mapping[str, Any]) -> None:
        show(screen, before, after, summary)

    def show_aspects(self, screen: Screen, aspects: Mapping[str, Interval]) -> None:
        show_aspects(screen, aspects)
