"""Every decoder family that is promised: generation equals transformers', rollout log-probs equal the training forward.

Left-aligned rows of different length run together, begin where others have ended, and stand in for each other.
"""

import re
import sys
from pathlib import Path

import pytest
import transformers
from decoders import (
    CLASSES,
    FAMILIES,
    Measured,
    answers,
    build,
    generated,
    logprobs,
    measure,
    measure_class,
    of_this_commit,
    spelled_out,
)

from chatsmith.models import lm
from chatsmith.models.way import way_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from families import GAP, LARGE_GAP, class_row, page, row  # noqa: E402

LINES = (DOCS / "families.md").read_text(encoding="utf-8").splitlines()
TABLES = [
    [line for line in part if line.startswith("| ")][1:]
    for part in (LINES[: LINES.index("## All others")], LINES[LINES.index("## All others") :])
]
VERSION = re.search(r"with transformers ([\d.]+\d)", " ".join(LINES)).group(1)
# not those near a limit, which processors may round to either side
CLEAR = [name for name, line in zip(CLASSES, TABLES[1], strict=True) if "e-0" not in line]
OF_THIS_COMMIT = of_this_commit(CLEAR, count=20)


# another version may have brought an architecture to the common interface, or not yet
SAME_VERSION = transformers.__version__ == VERSION


def how(line):
    """A class's row without the sizes of the gaps, which processors round differently."""
    cells = line.split(" | ")
    return cells[:2] + cells[4:]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_rollout_logprobs_are_those_of_transformers_and_the_page_says_what_is_measured(family):
    measured = measure(family)
    assert measured.equal
    assert measured.gap <= GAP
    if SAME_VERSION:
        assert row(measured) == TABLES[0][list(FAMILIES).index(family)], "make docs"
    model = build(family)
    assert [answer.tokens for answer in answers(model, 0.0)] == generated(model) == spelled_out(model)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_THIS_COMMIT else pytest.mark.sweep) for name in CLASSES]
)
def test_any_other_class_is_computed_as_itself_or_refused(name):
    measured = measure_class(name)
    if isinstance(measured, Measured):
        assert measured.equal
        limits = (GAP, LARGE_GAP) if measured.way.sampling == "together" else (lm.GAP, lm.GAP)  # see the page
        for gap, limit in zip((measured.gap, measured.large_gap), limits, strict=True):
            assert gap <= max(limit, 2 * measured.plain_gap)
    if SAME_VERSION:
        assert how(class_row(name, measured)) == how(TABLES[1][list(CLASSES).index(name)]), "make docs"


def test_the_page_holds_all_families_and_classes_and_nothing_else_than_what_its_script_writes():
    assert len(TABLES[0]) == len(FAMILIES)
    assert len(TABLES[1]) == len(CLASSES)
    assert "\n".join([*LINES, ""]) == page(*TABLES, VERSION), "make docs"
    assert f"transformers=={VERSION}\n" in (DOCS.parent / "requirements.txt").read_text(), "make docs"
    assert sum(" | equal | " in line for line in TABLES[1]) >= 110


def test_the_comparisons_can_fail():
    model, other = build("llama"), build("qwen2")
    assert [answer.tokens for answer in answers(model, 0.0)] != generated(other)
    rollout, training, *_ = logprobs(model, 1.0)
    assert (rollout - training.flip(0)).abs().max() > 1e-3


def test_a_family_that_cannot_run_together_is_caught_and_would_give_other_tokens_if_it_were_forced_to():
    model = build("gpt_neo")
    assert way_of(model).sampling == "alone"
    assert [answer.tokens for answer in answers(model, 0.0, together=True)] != generated(model)


def test_falcon_with_alibi_runs_together():
    # its bias counts from the first key, which a softmax does not see: rows of one batch may differ in length
    model = build("falcon, alibi")
    assert way_of(model).sampling == "together"
    assert [answer.tokens for answer in answers(model, 0.0, together=True)] == generated(model)
