"""What a user says about a source: which stages, where, which split, how much, and what its columns mean.

    [STAGE[,STAGE]:]PATH_OR_ID[#SPLIT][@WEIGHT]      sft,reward:pairs.jsonl@0.5      rl:openai/gsm8k#main/train

Only the text is taken apart here; `sources.py` opens what it names.
"""

import math
import os
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from chatsmith.config import SourceConfig
from chatsmith.errors import ConfigError
from chatsmith.screen.text import did_you_mean
from chatsmith.types import Stage

OnError = Literal["raise", "skip"]  # what becomes of a bad record
STAGES: tuple[Stage, ...] = get_args(Stage)
# by what each makes of a record: an answer, answers or marks, several answers, its prompt, its text
IMITATING, COMPARING, RANKING, ASKING, READING = STAGES
LEARNING = STAGES[:-1]  # each record goes to one of these; any may be text for mixed training too
_FORM = "[STAGE[,STAGE]:]PATH_OR_ID[#SPLIT][@WEIGHT]"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Spec:
    """One data source as asked for. Empty `stages` means every stage that a record's fields allow.

    `table` is what a recipe says about it beside the text, else None.
    """

    stages: tuple[Stage, ...]
    location: str
    split: str | None
    weight: float = 1.0
    table: SourceConfig | None = None


def as_spec(source: str | SourceConfig) -> Spec:
    """One entry of `data.sources`: a text, or a table that holds one.

    Raises:
        ConfigError: as `parse_spec`.
    """
    if isinstance(source, str):
        return parse_spec(source)
    return replace(parse_spec(source.source), table=source)


def parse_spec(text: str) -> Spec:
    """Takes a data spec apart.

    Names with ':', '#' or '@' in them are allowed for files that exist: of all ways to cut the text, the one with the
    most parts whose location exists on disk is taken; if none exists, the one with the most parts.

    Raises:
        ConfigError: if a stage, the split, the weight or the location is missing or invalid.
    """
    readings = _readings(text)
    there = (reading for reading in readings if reading[1] and os.path.exists(os.path.expanduser(reading[1])))
    stages, location, split, weight = next(there, readings[0])
    if not location:
        raise ConfigError(f'--data "{text}": names no file and no dataset. The form is {_FORM}.')
    if split == "":
        raise ConfigError(f'--data "{text}": nothing follows "#". Write a split, as in "#train", or leave "#" out.')
    return Spec(_stages(stages, text), location, split, _weight(weight, text))


def _readings(text: str) -> list[tuple[str | None, str, str | None, str | None]]:
    """All ways to cut the text into stages, location, split and weight, None where one is absent; more parts first."""
    heads: list[tuple[str | None, str]] = [(None, text)]
    if ":" in text and not _DRIVE.match(text):
        stages, _, rest = text.partition(":")
        heads.insert(0, (stages, rest))
    return [
        (stages, location, split, weight)
        for stages, rest in heads
        for before, weight in _cuts(rest, "@")
        for location, split in _cuts(before, "#")
    ]


def _cuts(text: str, mark: str) -> list[tuple[str, str | None]]:
    before, found, after = text.rpartition(mark)
    return [(before, after), (text, None)] if found else [(text, None)]


def _stages(text: str | None, spec: str) -> tuple[Stage, ...]:
    if text is None:
        return ()
    stages: list[Stage] = []
    for name in text.split(","):
        stage = next((stage for stage in STAGES if stage == name), None)
        if stage is None:
            near = did_you_mean(name.strip().lower(), STAGES, cutoff=0.4)
            hint = near or f"the stages are {', '.join(STAGES)}."
            raise ConfigError(f'--data "{spec}": unknown stage "{name}"; {hint} The form is {_FORM}.')
        if stage in stages:
            raise ConfigError(f'--data "{spec}": stage "{stage}" stands there twice. Write it once.')
        stages.append(stage)
    return tuple(stages)


def _weight(text: str | None, spec: str) -> float:
    if text is None:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        raise ConfigError(
            f'--data "{spec}": the weight "{text}" is not a number. Write one such as "@0.5". The form is {_FORM}.'
        ) from None
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f'--data "{spec}": the weight {text} is not above 0. Leave the source out, or write "@0.5".')
    return weight
