"""A reward in plain Python: a good story lets somebody speak and comes to a proper end.

chatsmith train --actor-model MODEL --data stories.jsonl --reward examples/story_reward.py:speech_and_end
"""

from chatsmith.types import Sample


def speech_and_end(samples: list[Sample]) -> list[float | None]:
    """One point for direct speech (an opened and closed quotation), one for ending by itself with a full stop."""
    rewards: list[float | None] = []
    for sample in samples:
        speaks = sample.answer.count('"') >= 2
        ends = sample.finish_reason == "stop" and sample.answer.endswith((".", "!", "?", '"'))
        rewards.append(float(speaks) + float(ends))
    return rewards
