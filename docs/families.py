"""Writes families.md beside this file: what is measured on a small model of every decoder: `make docs`, minutes."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import transformers
from decoders import CLASSES, FAMILIES, Measured, measure, measure_class

GAP, LARGE_GAP = 1e-5, 1e-4

INTRODUCTION = """# Decoder families

How a model is computed is decided when it is loaded (`chatsmith/models/lm.py`), by trying: on a small twin of it with
large random weights, on rows past every window and short ones beside long ones, against transformers' plain forward
pass over each row alone; then on a short row with its own weights. No architecture is looked up. A model that cannot be
computed as itself is refused by name: one that looks ahead, or whose rows would not be its own.

What was decided for small models of all causal language models stands here, measured in fp32 on the CPU by
`tests/decoders.py` with transformers {version}. A test measures every row again, some of them in every run
(`make test`), all of them in `make test-all`.

- *greedy tokens*: whether five prompts of different length, run through three rows of the engine, get the tokens that
  plain forward passes over each of them alone give, one after the other.
- *log-prob gap*: the largest difference between the log-probs of sampled tokens in the rollout, in the training forward
  and in plain forward passes, in nats, at temperatures 1 and 0.7.
- *training rows*: *packed* rows of different length run without padding; *padded* ones to the length of the longest,
  *masked* ones with an attention mask, too; *alone* is each row in a pass of its own.
- *engine*: sequences of different length run *together*, or *one at a time*; *anew for each token* is without a
  cache, where none gives the model's own log-probs. *whole prompts*: long ones are not computed in chunks.

In bf16 rollout and training round differently, and so do two forward passes of transformers. By how much is measured on
the first answers of each run (`rollout/logprob_noise`), and three times that is the limit for the difference between
rollout and training. The head is computed in fp32.

## The families that are promised

Models of two layers; the settings are those of `tests/decoders.py`. Their greedy tokens are those of `generate`, too.

"""

OTHERS = """
## All others

Every class of transformers' causal mapping, as small as its own defaults can be made, with logits of about 10 in size.
The first gap is at temperatures 10 and 7, the second at 2. A state is added up in another order token by token than
over a whole row: where sequences run one at a time, the gap may be 5e-4. Where padded rows are not the rows alone in
transformers either (it chooses among numbers that are equal but for rounding), the page says by how much. What is not
built here (its defaults are no model's, or it needs a package that is not installed) is tried when it is loaded, as
everything is.

"""


def page(families: Sequence[str], classes: Sequence[str], version: str) -> str:
    """The whole page, of rows measured with a version of transformers."""
    columns = ("greedy tokens", "log-prob gap", "training rows", "engine")
    tables = (
        _table(("family", "architecture", *columns), families),
        _table(("architecture", columns[0], columns[1], "with large logits", *columns[2:]), classes),
    )
    return INTRODUCTION.format(version=version) + tables[0] + OTHERS + tables[1]


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows]) + "\n"


def row(measured: Measured) -> str:
    """Of a family."""
    return _line(measured.name, f"`{measured.architecture}`", *_figures(measured))


def class_row(name: str, measured: Measured | str) -> str:
    """Of a class; `measured` may be the reason why it is not."""
    if isinstance(measured, str):
        return _line(f"`{name}`", measured, *[""] * 4)
    equal, gap, *how = _figures(measured)
    large = _gap(measured.large_gap or 0, LARGE_GAP)
    if measured.plain_gap > LARGE_GAP:
        large += f" (transformers' padded rows: {measured.plain_gap:.0e})"
    return _line(f"`{name}`", equal, gap, large, *how)


def _figures(measured: Measured) -> tuple[str, str, str, str]:
    way = measured.way
    engine = {"together": "together", "alone": "one at a time", "anew": "anew for each token"}[way.sampling]
    return (
        "equal" if measured.equal else "other",
        _gap(measured.gap, GAP),
        way.rows if way.head == "apart" else f"{way.rows}, with their head",
        engine if way.chunks or way.sampling != "together" else f"{engine}, whole prompts",
    )


def _gap(gap: float, limit: float) -> str:
    return f"≤ {limit:.0e}".replace("e-0", "e-") if gap <= limit else f"{gap:.0e}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    families = [row(measure(family)) for family in FAMILIES]
    classes = []
    for number, name in enumerate(CLASSES):
        classes.append(class_row(name, measure_class(name)))
        print(f"{number + 1}/{len(CLASSES)} {classes[-1]}", flush=True)
    text = page(families, classes, transformers.__version__)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
