"""Control tokens: those that only a chat template may write.

People and models can spell them ("<|eot_id|>"), in prompts, answers and system texts. That is text, or a prompt could
end turns and open others. Nothing is looked up by name for that. Typed text goes through the template with the letters
that control tokens begin with exchanged for marks, so that nothing a template does to it can spell one. What the
template has written is then read by a copy of the tokenizer in which control tokens have other names, single characters
that nobody has typed: for these the spellings that stand in the template's own words are exchanged, and then the marks
for their letters. So everything that was typed is read as the words around it are, in the same way of tokenising.
"""

import json
import re
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer

from chatsmith.errors import ConversationError

PRIVATE = range(0xF0000, 0x10FFFE)  # characters without a meaning, of which names and marks are taken
MANY_UNKNOWN = 0.02  # share of unknown tokens from which on an assistant will say them
_FIRST = 0x10A3C1  # where to begin: in the midst of them, where nobody else does
_PRIVATE = re.compile(f"[{chr(PRIVATE.start)}-{chr(PRIVATE.stop)}]")

_made: "WeakKeyDictionary[Any, Control]" = WeakKeyDictionary()


def control_of(tokenizer: Any, typed: Iterable[str] = ()) -> "Control":
    """The control tokens of a tokenizer, made once, under names that do not stand in what was `typed`.

    Raises:
        ConversationError: if there are no such names.
    """
    # of what text there is only private characters matter
    taken = {ord(letter) for text in typed if not text.isascii() for letter in _PRIVATE.findall(text)}
    control = _made.get(tokenizer)
    if control is None or control.state != _state(tokenizer):
        control = _made[tokenizer] = Control(tokenizer, _FIRST)
    size = len(control.reserved)
    if taken.isdisjoint(control.reserved):
        return control
    free = (first for first in range(PRIVATE.start, PRIVATE.stop - size, size))
    first = next((first for first in free if taken.isdisjoint(range(first, first + size))), None)
    if first is None:
        raise ConversationError(f"a text holds characters of all blocks of {size} that have no meaning. Leave it out.")
    return Control(tokenizer, first)


class Control:
    """See above.

    `reserved` are the characters used as names and marks, `strips_right` the spellings of tokens that swallow the white
    space behind them, `quiet` the ids that give no text when tokens are decoded:
    the special ones, but not the one for what the vocabulary has no token for, which must be seen.
    """

    def __init__(self, tokenizer: Any, first: int) -> None:
        self.state = _state(tokenizer)
        self._tokenizer = weakref.proxy(tokenizer)
        added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        self._ids = {token.content: id for id, token in added.items() if _is_control(token, tokenizer)}
        letters = sorted({_first_letter(spelling) for spelling in self._ids})
        end = first + len(self._ids) + len(letters) + 1
        self.reserved = range(first, end)
        names = dict(zip(self._ids, map(chr, self.reserved), strict=False))
        marks = [chr(end - 2 - number) for number in range(len(letters))]
        self.placeholder = chr(end - 1)  # see rendering.py
        self._hidden = dict(zip(map(ord, letters), marks, strict=True))
        self._shown = dict(zip(map(ord, marks), letters, strict=True))
        self._names = names
        self._spelled = _pattern(token for token in added.values() if token.content in self._ids)
        self.strips_right = {token.content for token in added.values() if token.rstrip}
        special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.quiet = frozenset(special - {unknown_id(tokenizer)})
        if tokenizer.is_fast:
            self._backend = _renamed(tokenizer.backend_tokenizer, names)
            here = self._backend.token_to_id
            meant = {here(names.get(token.content, token.content)): id for id, token in added.items()}
            self._moved = {made: id for made, id in meant.items() if made is not None and made != id}

    @cached_property
    def wrap(self) -> str:
        """What the template puts in front of every answer, see rendering.py."""
        from chatsmith.data.rendering import Renderer  # it renders with this very class

        return Renderer(self._tokenizer, self).wrap()

    def hide(self, text: str) -> str:
        """Typed text for a template: nothing of it spells a control token, whatever is cut from it or joined to it."""
        return text.translate(self._hidden)

    def show(self, text: str) -> str:
        """The text that was hidden."""
        return text.translate(self._shown)

    def unspeakable(self) -> list[str]:
        """Spellings that cannot be read as text, because the vocabulary has nothing for some letter of them."""
        unknown = unknown_id(self._tokenizer)
        if unknown is None:
            return []
        rows = self.encode([self.hide(spelling) for spelling in self._ids])
        return [spelling for spelling, row in zip(self._ids, rows, strict=True) if unknown in row]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of pieces of rendered conversations. None is added, no BOS either: the template writes it."""
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            return [self._encode_slowly(text) for text in texts]
        named = [self.show(self._spelled.sub(lambda found: self._names[found[0]], text)) for text in texts]
        # what calling the tokenizer adds, masks and offsets, takes a third of the time and is used by nobody here
        rows: list[list[int]] = [row.ids for row in self._backend.encode_batch_fast(named, add_special_tokens=False)]
        return [[self._moved.get(id, id) for id in row] for row in rows] if self._moved else rows

    def _encode_slowly(self, text: str) -> list[int]:
        """With a tokenizer in Python, which can leave out its added tokens when asked."""
        ids: list[int] = []
        end = 0
        for found in [*self._spelled.finditer(text), None]:
            words = self.show(text[end : found.start() if found else len(text)])
            if words:
                tokens = self._tokenizer.tokenize(words, split_special_tokens=True)
                ids += self._tokenizer.convert_tokens_to_ids(tokens)
            if found:
                ids.append(self._ids[found[0]])
                end = found.end()
        return ids


def unknown_id(tokenizer: Any) -> int | None:
    """The id of the token for what the vocabulary has none for, if there is one that means nothing else."""
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    id: int | None = tokenizer.unk_token_id
    return None if id in others else id


def _state(tokenizer: Any) -> tuple[object, ...]:
    added = [(id, repr(token)) for id, token in tokenizer.added_tokens_decoder.items()]
    return str(tokenizer.chat_template), tuple(added), tuple(tokenizer.all_special_ids)


def _is_control(token: AddedToken, tokenizer: Any) -> bool:
    """Whether an added token is one that must not be typed: special, in the template, or with signs in it.

    The others, runs of spaces and words of letters and digits alone, are a tokenizer's way to read running text, and
    the model was trained on text that was read so.
    """
    text = token.content.replace("▁", " ")  # how SentencePiece writes a space
    if not text.strip():
        return False
    is_words = all(letter.isalnum() or letter.isspace() for letter in text)
    return bool(token.special) or token.content in str(tokenizer.chat_template) or not is_words


def _first_letter(spelling: str) -> str:
    """The first that is no space: spaces at the ends of a text are a template's affair."""
    return spelling.lstrip()[0]


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Finds the spellings as tokenizers do: from the left, of several the longest."""
    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    spellings = [
        rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content) for t in longest_first
    ]
    return re.compile("|".join(spellings) or r"(?!)")


def _renamed(backend: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy that reads `names` as the tokens they stand for, and their spellings as text."""
    held = json.loads(backend.to_str())
    for token in held["added_tokens"]:
        if token["content"] in names:
            # the name is to be found wherever it stands, before a normalizer has changed or deleted it
            token |= {"content": names[token["content"]], "single_word": False, "normalized": False}
    model = held["model"]
    vocabulary = model.get("vocab")
    # The model's own vocabulary may hold them too, where a search for the likeliest pieces would find them in text.
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in vocabulary.items()}
    elif vocabulary is not None:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge, model) not in names]
    held |= {"truncation": None, "padding": None, "post_processor": None}
    return Tokenizer.from_str(json.dumps(held))


def _merged(merge: Any, model: dict[str, Any]) -> str:
    one, two = merge.split(" ") if isinstance(merge, str) else merge
    return str(one) + str(two).removeprefix(model.get("continuing_subword_prefix") or "")
