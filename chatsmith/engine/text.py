"""From tokens to text, of whole answers and of answers while they are spoken.

`Speech` is what a person is shown of an answer as its tokens come; chat and callers in Python read it through
`Assistant.stream`, and whoever drives an engine by itself needs no other. `stop_strings` tells the engine where a
sequence ends, and `decode_answers` is the text that rewards and data know.
"""

from collections.abc import Callable, Sequence
from typing import Any

from chatsmith.data.control import control_of
from chatsmith.errors import ForeignError, ModelError, foreign


def text_of(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of tokens. Raises: ModelError if the tokenizer cannot tell."""
    try:
        with foreign():
            return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    except ForeignError as error:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} cannot decode tokens: {error}.") from error


def decode_answer(tokenizer: Any, ids: Sequence[int], *, stops: Sequence[int] = ()) -> str:
    """The text of sampled tokens: see `decode_answers`."""
    return decode_answers(tokenizer, [ids], stops=stops)[0]


def decode_answers(tokenizer: Any, rows: Sequence[Sequence[int]], *, stops: Sequence[int]) -> list[str]:
    """The text of each row of sampled tokens, as data would have it.

    That is without the stop token, special tokens, what the template puts in front of every answer, and surrounding
    white space. The token for what the vocabulary has none for is shown by its name.
    """
    control = control_of(tokenizer)
    texts = []
    for ids in rows:
        said = ids[:-1] if ids and ids[-1] in stops else ids
        text = text_of(tokenizer, [id for id in said if id not in control.quiet])
        texts.append(unwrapped(text.strip(), control.wrap))
    return texts


def unwrapped(text: str, wrap: str) -> str:
    """What a policy said without what the template puts in front of every answer."""
    bare = text.lstrip()
    return bare[len(wrap) :].lstrip() if wrap and bare.startswith(wrap) else text


class TextStream:
    """Turns sampled tokens into text while they arrive, with any tokenizer.

    A character whose bytes are spread over several tokens is held back until the last of them. Special tokens give
    no text. All that `add` and `finish` return, joined, is what decoding all tokens at once gives. The two may
    differ where bytes never form a character, which a vocabulary with byte fallback allows.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the tokens of the last text given, and those since
        self._count = 0  # how many the former are
        self._given = ""  # and their text

    def add(self, token: int) -> str:
        """The text that this token completes; "" where it completes none."""
        self._window.append(token)
        text = self._decode()
        if text.endswith("�"):  # the beginning of a character, as far as one can tell
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What is still held back: an answer may end in the middle of a character."""
        return self._give(self._decode())

    def _give(self, text: str) -> str:
        piece = text[len(self._given) :]
        if piece:
            # Decoders look at the token before: whether a space stands between two words, whether a byte begins a
            # character. So the tokens of this piece stay in the window; older ones no longer matter.
            self._window = self._window[self._count :]
            self._count = len(self._window)
            self._given = self._decode()
        return piece

    def _decode(self) -> str:
        return text_of(self._tokenizer, self._window, skip_special_tokens=True)


class AnswerStream:
    """A `TextStream` that ends before a stop string, of which nothing is ever given.

    Nor is what the template puts in front of every answer. Text that may turn out to be the beginning of one of them is
    held back until that is known. If several stop strings are found, the one that is complete first counts.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._text = TextStream(tokenizer)
        self._wrap = control_of(tokenizer).wrap
        self._stop = stop
        self._held = ""
        self.ended = False  # by a stop string

    def add(self, token: int) -> str:
        """The text that is certain with this token; "" after the end."""
        return self._give(self._text.add(token))

    def finish(self) -> str:
        """What is still held back where no stop string has come."""
        piece = self._give(self._text.finish())
        held, self._held = unwrapped(self._held, self._wrap), ""
        return piece + held

    def _give(self, text: str) -> str:
        if self.ended:
            return ""
        text = self._held + text
        if self._wrap.startswith(text.lstrip()) and self._wrap:
            self._held = text
            return ""
        text, self._wrap = unwrapped(text, self._wrap), ""
        if found := [(begin + len(stop), begin) for stop in self._stop if (begin := text.find(stop)) >= 0]:
            self.ended, self._held = True, ""
            return text[: min(found)[1]]
        longest = max(map(len, self._stop), default=1) - 1
        begins = range(max(0, len(text) - longest), len(text))
        certain = next((at for at in begins if any(stop.startswith(text[at:]) for stop in self._stop)), len(text))
        self._held = text[certain:]
        return text[:certain]


class Speech:
    """What is shown of an answer as it comes: no stop token or string, and no white space at its beginning or end.

    White space is held back until text follows. All pieces, joined, are the answer.
    """

    def __init__(self, tokenizer: Any, *, stops: Sequence[int], stop: Sequence[str] = ()) -> None:
        """
        Args:
            stops: ids that end an answer.
            stop: strings that do.
        """
        self._text = AnswerStream(tokenizer, stop)
        self._stops = stops
        self._held, self._spoken = "", False

    def add(self, token: int, *, last: bool) -> str:
        """The text that is certain with this token, the last one of its answer or not; may be empty."""
        if token not in self._stops:
            self._held += self._text.add(token)
        if last:
            self._held += self._text.finish()
        held = self._held if self._spoken else self._held.lstrip()
        piece = held.rstrip()
        self._held, self._spoken = held[len(piece) :], self._spoken or bool(piece)
        return piece


def stop_strings(tokenizer: Any, stop: Sequence[str]) -> Callable[[], Callable[[int], bool]]:
    """For `Request.watch`: a sequence ends with the token that completes one of the strings in its decoded text."""

    def listener() -> Callable[[int], bool]:
        text = AnswerStream(tokenizer, stop)

        def ends_at(token: int) -> bool:
            text.add(token)
            return text.ended

        return ends_at

    return listener


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, joined the text of all; bytes of a character belong to the token that completes it."""
    stream = TextStream(tokenizer)
    texts = [stream.add(id) for id in ids]
    if texts:
        texts[-1] += stream.finish()
    return texts
