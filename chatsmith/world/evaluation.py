"""The task world's gold judge as a run names it: a function from samples to parts, like a user's own."""

from dataclasses import asdict
from typing import Any

from chatsmith.types import Sample
from chatsmith.world.judge import judge
from chatsmith.world.tasks import Task


def asked(task: Task) -> dict[str, Any]:
    """What the judge must know of a task, to stand beside its prompt in a row of data."""
    return {"answer": task.answer, "kind": task.kind, "language": task.language, "polite": task.polite}


def gold(samples: list[Sample]) -> list[dict[str, float | None]]:
    """What each answer to a task is really worth, and the parts of that; right once more where the prompt is polite."""
    return [_marks(sample) for sample in samples]


def _marks(sample: Sample) -> dict[str, float | None]:
    known = sample.record.fields["task"]
    task = Task(sample.messages[-1].content, **known, direct=known["answer"], wrong=(), operands="")
    parts = asdict(judge(task, sample.answer, sample.finish_reason == "stop"))
    return {**parts, "right_on_polite_prompts": parts["right"] if task.polite else None}
