"""`data.json` of a run directory: what was found in its data. inspection/record.py writes it."""

import math
from typing import Annotated

from pydantic import Field

from chatsmith.runs.manifest import Count, Number, Part, Text


class Lengths(Part):
    """A histogram over half octaves."""

    counts: list[Count] = Field(default_factory=list)
    median: Number = math.nan
    percentile_95: Number = math.nan
    longest: Number = math.nan


class StageLengths(Part):
    """Of the records that a stage takes."""

    limit: Number = math.nan
    measured: Count = 0
    too_long: Count = 0
    lengths: dict[Text, Lengths] = Field(default_factory=dict)


class SourceFacts(Part):
    """The scripts of its letters, each with its share."""

    spec: Text = ""
    scripts: dict[Text, Number] = Field(default_factory=dict)


class Place(Part):
    """An example of a finding."""

    where: Text = ""
    text: Text = ""


class Noticed(Part):
    """A finding."""

    severity: Text = "note"
    what: Text = ""
    remedy: Text = ""
    count: Count = 0
    of: Count = 0
    where: Text = ""
    examples: list[Place] = Field(default_factory=list)


class Read(Part):
    """A row of tokens: the text of each, whether it is learned, whether it is special."""

    title: Text = ""
    fate: Text = ""
    count: Count = 0
    tokens: list[Annotated[tuple[Text, bool, bool], Field(strict=False)]] = Field(default_factory=list)


class Seen(Part):
    """A record as a stage sees it."""

    stage: Text = ""
    where: Text = ""
    note: Text = ""
    rows: list[Read] = Field(default_factory=list)


class DataFacts(Part):
    """All of it."""

    unit: Text = ""
    sources: list[SourceFacts] = Field(default_factory=list)
    stages: dict[Text, StageLengths] = Field(default_factory=dict)
    findings: list[Noticed] = Field(default_factory=list)
    examples: list[Seen] = Field(default_factory=list)
