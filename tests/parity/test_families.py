"""Every decoder family that is promised: generation equals transformers', rollout log-probs equal the training forward.

Left-aligned rows of different length run together, begin where others have ended, and stand in for each other.
"""

import re
import sys
from pathlib import Path

import pytest
import transformers
from decoders import FAMILIES, answers, build, generated, logprobs, measure

from chatsmith.engine.engine import carries

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from families import LARGEST_GAP, page, row  # noqa: E402

LINES = (DOCS / "families.md").read_text(encoding="utf-8").splitlines()
ROWS = [line for line in LINES if line.startswith("| ")][1:]
VERSION = re.search(r"with transformers ([\d.]+\d)", " ".join(LINES)).group(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_rollout_logprobs_are_those_of_transformers_and_the_page_says_what_is_measured(family):
    measured = measure(family)
    assert measured.equal
    assert measured.gap <= LARGEST_GAP
    if transformers.__version__ == VERSION:  # another one may have brought a family to the common interface, or not yet
        assert row(measured) == ROWS[list(FAMILIES).index(family)], "make docs"


def test_the_page_holds_all_families_and_nothing_else_than_what_its_script_writes():
    assert len(ROWS) == len(FAMILIES)
    assert "\n".join([*LINES, ""]) == page(ROWS, VERSION), "make docs"
    assert f"transformers=={VERSION}\n" in (DOCS.parent / "requirements.txt").read_text(), "make docs"


def test_the_comparisons_can_fail():
    model, other = build("llama"), build("qwen2")
    assert [answer.tokens for answer in answers(model, 0.0)] != generated(other)
    rollout, training = logprobs(model, 1.0)
    assert (rollout - training.flip(0)).abs().max() > 1e-3


def test_a_family_that_cannot_run_together_is_caught_and_would_give_other_tokens_if_it_were_forced_to():
    model = build("gpt_neo")
    assert not carries(model)
    assert [answer.tokens for answer in answers(model, 0.0, together=True)] != generated(model)


def test_falcon_with_alibi_runs_together():
    # its bias counts from the first key, which a softmax does not see: rows of one batch may differ in length
    model = build("falcon, alibi")
    assert carries(model)
    assert [answer.tokens for answer in answers(model, 0.0, together=True)] == generated(model)
