"""How a model is computed, noted on the model itself, so that its copies know it too. `lm.py` decides."""

from dataclasses import dataclass
from typing import Any, Literal

from chatsmith.models.attention import attend_here

Rows = Literal["packed", "padded", "masked", "alone"]
"""How rows share a pass: without padding; right-padded; the same with an attention mask; each in a pass of its own."""

Attention = Literal["here", "theirs"]
"""Whether attention is computed in `attention.py`, or as transformers does."""

Sampling = Literal["together", "alone", "anew"]
"""How sequences run: side by side; one at a time; one at a time, and all of it again for each token."""

_NAME = "_chatsmith_way"


@dataclass(frozen=True)
class Way:
    """How a model is computed."""

    rows: Rows
    attention: Attention = "here"
    head: Literal["apart", "whole"] = "apart"  # on the states that are asked for, or with the body, on all of them
    sampling: Sampling = "together"
    chunks: bool = True  # whether a long prompt may be computed chunk after chunk
    told_positions: bool = True  # whether a sequence that is sampled alone is told where its tokens stand
    limit: int | None = None  # tokens of a row up to which this holds; a longer one is computed alone

    def rows_of(self, width: int) -> Rows:
        """How rows of up to so many tokens share a pass."""
        return "alone" if self.limit is not None and width > self.limit else self.rows


def way_of(model: Any) -> Way:
    """How a model, or a body without a head, is computed.

    Raises:
        ModelError: if it cannot be computed here at all.
    """
    way: Way | None = vars(model).get(_NAME)
    if way is None:
        from chatsmith.models.lm import decide  # it tries ways by this very function

        way = decide(model)
        note(model, way)
    return way


def note(model: Any, way: Way) -> None:
    """This is how a model is computed, and its body."""
    vars(model)[_NAME] = way
    vars(model.base_model)[_NAME] = way
    attend_here(model, here=way.attention == "here")
