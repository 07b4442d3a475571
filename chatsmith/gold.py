"""A judge who knows how good answers really are: asked for showing and for the verdict, and never by training.

    def judge(samples: list[Sample]) -> list[float | None | dict[str, float | None]]

For each sample a number, best from 0 to 1, or several by name with their "total"; None where it cannot say.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.assistant import Assistant
from chatsmith.config import Config
from chatsmith.data.mix import StageData
from chatsmith.engine.engine import Sampling
from chatsmith.errors import RewardError
from chatsmith.evaluate import Interval, common, paired_difference, proportion
from chatsmith.functions import load_function
from chatsmith.intake import records_of
from chatsmith.models.reward import RewardModel, values_of
from chatsmith.screen.console import Screen
from chatsmith.stages.inputs import held_out_prompts, is_ranked, ranked_samples
from chatsmith.stages.rollout import encode_questions, roll_out
from chatsmith.types import Record, Sample, Stage
from chatsmith.verdicts import Judged

TOTAL = "total"
SAMPLES = 2  # per prompt, averaged
SHOWN = 10
FEW_PAIRS = 16  # of one aspect, below which they say nothing of the reward model

Marks = dict[str, float]
"""What the judge makes of one answer: "total" and its parts by name; NaN where it said nothing."""
Pair = tuple[Sample, Sample]  # better, worse


@dataclass(frozen=True)
class GoldScores:
    """What the judge makes of one policy, prompt by prompt."""

    samples: Sequence[Sample]  # SAMPLES in a row for each prompt, at temperature 1
    sampled: Sequence[Marks]  # of each of them
    greedy: Sequence[Marks]  # of one greedy answer per prompt

    def totals(self) -> list[float]:
        """Of each prompt, over its samples."""
        values = [marks[TOTAL] for marks in self.sampled]
        return [_mean(values[start : start + SAMPLES]) for start in range(0, len(values), SAMPLES)]

    def greedy_totals(self) -> list[float]:
        return [marks[TOTAL] for marks in self.greedy]

    def parts(self) -> dict[str, float]:
        """Mean of each part over the samples of which the judge named it."""
        return {name: _mean(values) for name, values in _columns(self.sampled).items() if name != TOTAL}


@dataclass(frozen=True)
class GoldJudge:
    """The judge of a run, with what it asks.

    `prompts`, of which the first `limit` that leave room for an answer are asked; `pairs`: records with ranked answers.
    """

    name: str
    function: Callable[[list[Sample]], Any]
    config: Config
    prompts: Sequence[Record]
    limit: int | None = None
    pairs: Sequence[Record] = ()

    def __call__(self, samples: Sequence[Sample]) -> list[Marks]:
        """
        Raises:
            RewardError: if the function raised, returned something else than marks, or has no number for any sample.
        """
        values = values_of(self.function, list(samples), who=f"judge {self.name!r}")
        marks = [self._marks(value) for value in values]
        if marks and not any(math.isfinite(each[TOTAL]) for each in marks):
            raise RewardError(
                f"judge {self.name!r} gave no finite number to any of {len(samples)} answers, such as "
                f"{samples[0].answer[:80]!r}. Mend the function."
            )
        return marks

    def probe(self, policy: Assistant) -> dict[str, float]:
        """Metrics of the policy as it is, for the curve of a run: of one sampled answer per prompt."""
        columns = _columns(self(self._answers(policy, Sampling(temperature=1.0), 1)))
        return {f"gold/{name}": _mean(values) for name, values in columns.items()}

    def scores(self, policy: Assistant) -> GoldScores:
        """Let a policy answer, sampled at temperature 1 and greedily, and judge the answers."""
        samples = self._answers(policy, Sampling(temperature=1.0), SAMPLES)
        greedy = self._answers(policy, Sampling(temperature=0.0), 1)
        return GoldScores(samples, self(samples), self(greedy))

    def judged(self, before: GoldScores, after: GoldScores, metrics: Sequence[Mapping[str, Any]]) -> Judged:
        """What training was good for, and the way there from the logged probes."""
        curve = [
            (row["step"], row["gold/total"], row["rl/reward_mean"])
            for row in metrics
            if row.get("gold/total") is not None and row["rl/reward_mean"] is not None
        ]
        return Judged(_gain(before, after), _mean(after.totals()), tuple(curve))

    def summary(self, before: GoldScores, after: GoldScores) -> dict[str, Any]:
        """The manifest's gold figures; sampled unless their name says greedy. Means are over prompts judged twice."""
        one, two, gain = before.totals(), after.totals(), _gain(before, after)
        both = common(one, two)
        greedy = paired_difference(before.greedy_totals(), after.greedy_totals())
        parts, then = before.parts(), after.parts()
        return {
            "gold_sft": _mean([one[i] for i in both]),
            "gold_rl": _mean([two[i] for i in both]),
            "gold_gain": gain.value,
            "gold_gain_ci95": [gain.low, gain.high],
            "gold_components": {name: [parts[name], then[name]] for name in parts if name in then},
            "gold_greedy": [_mean(before.greedy_totals()), _mean(after.greedy_totals())],
            "gold_greedy_gain_ci95": [greedy.low, greedy.high],
        }

    def marked(
        self, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[Sample]]
    ) -> list[dict[str, Any]]:
        """Rows of `samples.jsonl` with the judge's total of each answer, and whether it is right where a part says so.

        Args:
            answers: by who gave them, as many as rows.
        """
        marks = {who: self(samples) for who, samples in answers.items()}
        totals = [{f"{who}_gold": each[i][TOTAL] for who, each in marks.items()} for i in range(len(rows))]
        right = [
            {f"{who}_right": each[i]["right"] == 1 for who, each in marks.items() if "right" in each[i]}
            for i in range(len(rows))
        ]
        return [{**row, **total, **known} for row, total, known in zip(rows, totals, right, strict=True)]

    def aspects(self, scorer: RewardModel, policy: Assistant) -> dict[str, Interval]:
        """How often a reward model prefers the better of two answers that differ in an aspect.

        Of the judge's own pairs, or else of two answers that the policy gives to each prompt.
        """
        pairs: dict[str, list[Pair]] = defaultdict(list)
        for aspect, pair in self._written() if self.pairs else self._sampled(policy):
            pairs[aspect].append(pair)
        return {
            aspect: _share_won(scorer, differing)
            for aspect, differing in pairs.items()
            if self.pairs or len(differing) >= FEW_PAIRS
        }

    def show(
        self, screen: Screen, before: GoldScores, after: GoldScores, figures: Mapping[str, Any], *, algorithm: str
    ) -> None:
        """Some prompts with both answers, then the scores.

        Args:
            algorithm: that was between them, by its name for people.
        """
        asked = len(before.greedy)
        rows = [
            (sft.messages[-1].content[-200:], sft.answer[:200], rl.answer[:200])
            for i in range(0, asked, max(1, -(-asked // SHOWN)))
            for sft, rl in [(before.samples[SAMPLES * i], after.samples[SAMPLES * i])]
        ]
        title = f"Held-out questions, answered by the SFT and the {algorithm} model"
        screen.table(title, ("question", "SFT", algorithm), rows)
        scores = [
            (name.replace("_", " "), f"{one:.3f}", f"{two:.3f}", f"{two - one:+.3f}")
            for name, (one, two) in figures["gold_components"].items()
        ]
        gain, (low, high), (one, two) = figures["gold_gain"], figures["gold_gain_ci95"], figures["gold_greedy"]
        scores.append(("gold, greedy", f"{one:.3f}", f"{two:.3f}", f"{two - one:+.3f}"))
        sampled = (f"{figures['gold_sft']:.3f}", f"{figures['gold_rl']:.3f}")
        scores.append(("gold, sampled", *sampled, f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"))
        title = f"What the gold judge says about {asked} held-out questions"
        screen.table(title, ("score", "SFT", algorithm, "gain [95 %]"), scores)

    def show_aspects(self, screen: Screen, aspects: Mapping[str, Interval]) -> None:
        """The reward model's accuracy by aspect: one total would hide what it does not see."""
        if not aspects:
            return
        screen.table(
            "Does it see what matters? Accuracy on pairs of answers, by what they differ in",
            ("aspect", "accuracy [95 %]"),
            [(aspect, f"{a.value:.0%} [{a.low:.0%}, {a.high:.0%}]") for aspect, a in aspects.items()],
        )
        screen.line("")

    def _marks(self, value: Any) -> Marks:
        """One value that the function gave."""
        parts = value if isinstance(value, Mapping) else {TOTAL: value}
        if TOTAL not in parts or not all(isinstance(name, str) and name for name in parts):
            raise RewardError(
                f"judge {self.name!r} returned the parts {list(parts)}; return them by name, with their {TOTAL!r}."
            )
        try:
            numbers = {name: math.nan if part is None else float(part) for name, part in parts.items()}
        except (TypeError, ValueError) as error:
            raise RewardError(f"judge {self.name!r} returned something that is no number: {error}.") from error
        return {name: number if math.isfinite(number) else math.nan for name, number in numbers.items()}

    def _answers(self, policy: Assistant, sampling: Sampling, samples: int) -> tuple[Sample, ...]:
        limit = self.config.rl.max_new_tokens
        prompts = encode_questions(
            policy.tokenizer,
            self.prompts,
            stops=policy.stops,
            max_tokens=policy.max_tokens - limit,
            on_error=self.config.data.on_error,
        )
        if self.limit is not None:
            prompts = prompts.first(self.limit)
        return roll_out(
            policy,
            prompts,
            range(len(prompts.tokens)),
            sampling,
            limit=limit,
            samples=samples,
            seed=(self.config.seed, "gold"),
        ).samples

    def _written(self) -> Iterator[tuple[str, Pair]]:
        """The judge's own pairs: of the aspect that they name, or of the parts in which they differ."""
        for record in self.pairs:
            pair = ranked_samples(record)
            if "aspect" in record.fields:
                yield str(record.fields["aspect"]), pair
            else:
                yield from self._differing([pair])

    def _sampled(self, policy: Assistant) -> Iterator[tuple[str, Pair]]:
        if not self.prompts:
            return
        samples = self._answers(policy, Sampling(temperature=1.0), 2)
        pairs = list(zip(samples[::2], samples[1::2], strict=True))
        yield from self._differing([pair for pair in pairs if all(one.finish_reason == "stop" for one in pair)])

    def _differing(self, pairs: Sequence[Pair]) -> Iterator[tuple[str, Pair]]:
        """Each pair once for every part in which its answers differ, the better one first."""
        marks = self([sample for pair in pairs for sample in pair]) if pairs else []
        for (one, two), first, second in zip(pairs, marks[::2], marks[1::2], strict=True):
            for name in first:
                if name != TOTAL and first[name] != second.get(name, math.nan):
                    if first[name] > second.get(name, math.nan):
                        yield name, (one, two)
                    elif first[name] < second.get(name, math.nan):
                        yield name, (two, one)


def open_judge(config: Config, data: Mapping[Stage, StageData]) -> GoldJudge | None:
    """The judge that a configuration names, with its own questions and pairs, or the held-out prompts of stage 3.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    if not config.judge:
        return None
    own = records_of(config, "judge_sources", config.judge_sources)
    asked, pairs = ([record for record in own if is_ranked(record) == ranked] for ranked in (False, True))
    function = load_function(config.judge, kind="judge")
    name = config.judge.rpartition(":")[2]
    if asked:
        return GoldJudge(name, function, config, asked, pairs=pairs)
    return GoldJudge(name, function, config, held_out_prompts(config, data), config.rl.eval_prompts, pairs)


def _columns(marks: Sequence[Marks]) -> dict[str, list[float]]:
    """The finite numbers of each name, in the order in which the names come."""
    columns: dict[str, list[float]] = {}
    for each in marks:
        for name, value in each.items():
            if math.isfinite(value):
                columns.setdefault(name, []).append(value)
    return columns


def _mean(values: Sequence[float]) -> float:
    """Of the finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _gain(before: GoldScores, after: GoldScores) -> Interval:
    prompts = [sample.messages for sample in before.samples[::SAMPLES]]
    return paired_difference(before.totals(), after.totals(), prompts)


def _share_won(scorer: RewardModel, pairs: Sequence[Pair]) -> Interval:
    """Pairs of which the reward model can read an answer only count for nothing."""
    better, worse = (scorer([pair[side] for pair in pairs]) for side in (0, 1))
    both = [(a, b) for a, b in zip(better, worse, strict=True) if a is not None and b is not None]
    return proportion(sum(a > b for a, b in both), len(both))
