"""Labels: which of two answers of the SFT model is the better one, by the judge; the reward model learns from that."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chatsmith.assistant import Assistant
from chatsmith.config import Config, LabelConfig, StageName
from chatsmith.data.chat import Encoded, try_encode
from chatsmith.data.mix import StageData
from chatsmith.files.checkpoint import save_jsonl
from chatsmith.intake import deal, records_of
from chatsmith.runs.run import Run
from chatsmith.stages.inputs import ask, is_ranked, load_policy, policy_location, ranked_samples
from chatsmith.stages.table import BY_NAME
from chatsmith.types import Message, Sample, Stage
from chatsmith.verdicts import judge_label

NAME: StageName = "label"


@dataclass(frozen=True)
class LabelReport:
    """What the stage did, in pairs of answers."""

    pairs: int  # of two answers that ended
    unusable: int  # left out: an answer hit the limit, is empty, or cannot be carried by the chat template
    ties: int  # left out: the judge sees no difference, or cannot say
    different: int  # different preferences among those that were written


def check(config: Config, data: Mapping[Stage, StageData]) -> None:
    """What it lacks stands in the table."""


def run(run: Run) -> None:
    config, judge, stage = run.config, run.gold, run.stage(NAME)
    assert judge is not None, "a configuration without one is refused"
    records = records_of(config, "label.sources", config.label.sources)
    if not records:
        prompts = deal(config, run.data)["rl"]
        records = [*prompts.train, *prompts.held_out]  # the reward model's preferences stay on the side of their prompt
    run.screen.line("")
    run.screen.line(run.title(NAME), "bold")
    questions = [record for record in records if not is_ranked(record)]
    policy = load_policy(run, policy_location(run, NAME))
    samples = ask(run, policy, questions, len(questions), each=2) if questions else ()
    asked = list(zip(samples[::2], samples[1::2], strict=True))
    # cut-off answers never reach the reward model, and nothing that its data could not hold
    learnable = _learnable(policy, samples)
    pairs = [pair for pair, one, two in zip(asked, learnable[::2], learnable[1::2], strict=True) if one and two]
    unusable = len(asked) - len(pairs)
    pairs += [ranked_samples(record) for record in records if is_ranked(record)]
    marks = judge([sample for pair in pairs for sample in pair]) if pairs else []
    totals = [each["total"] for each in marks]
    rng = random.Random(f"labels-{config.seed}")
    rows = list(preferences(pairs, totals, config.label, rng))
    rng.shuffle(rows)
    save_jsonl(stage.directory / BY_NAME[NAME].files[0], rows)
    report = LabelReport(len(pairs), unusable, len(pairs) - len(rows), len(set(map(str, rows))))
    run.record(NAME, judge_label(report), stage, None, {}, report=asdict(report))


def preferences(
    pairs: Sequence[tuple[Sample, Sample]], totals: Sequence[float], settings: LabelConfig, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Rows of preferences, of which a share of `settings.noise` is turned round.

    Args:
        totals: the judge's score of each answer, two in a row for each pair.
    """
    for pair, one, two in zip(pairs, totals[::2], totals[1::2], strict=True):
        if not abs(one - two) > settings.tie or math.isnan(one - two):
            continue
        better, worse = pair if (one > two) != (rng.random() < settings.noise) else (pair[1], pair[0])
        turns = [[{"role": turn.role, "content": turn.content} for turn in better.messages]]
        turns += [[{"role": "assistant", "content": sample.answer}] for sample in (better, worse)]
        yield dict(zip(("prompt", "chosen", "rejected"), turns, strict=True))


def _learnable(policy: Assistant, samples: Sequence[Sample]) -> list[bool]:
    """Which answers a record of data may hold: they ended, say something, and the chat template can carry them."""
    conversations = [(*sample.messages, Message("assistant", sample.answer or "?")) for sample in samples]
    rows = try_encode(policy.tokenizer, conversations, stops=policy.stops)
    return [
        sample.finish_reason == "stop" and bool(sample.answer.strip()) and isinstance(row, Encoded)
        for sample, row in zip(samples, rows, strict=True)
    ]
