"""From messages to tokens, the same way in every stage, in chat and in serving.

A conversation is rendered by the tokenizer's own chat template and then cut at the borders of the assistant's turns;
each piece is tokenised by itself. So the prompt of a training example has exactly the tokens that generation starts
from, and the answer exactly the tokens that a policy could have sampled. Masks are made here and travel with the
data: nobody later guesses what a token is from its value.
"""

import copy
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import TemplateError

from chatsmith.errors import ModelError
from chatsmith.types import Message

# The answer starts on a line of its own: no tokenizer then joins its first word with what stands before it.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Human: ' + message['content'] | trim + '\\n\\n' }}"
    "{% else %}{{ 'Assistant:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)

PAD_TOKEN = "<|pad|>"


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    `targets[t]` is True on the tokens an assistant says: its answers, each with the token that ends it.
    """

    tokens: list[int]
    targets: list[bool]


def oddities(tokenizer: Any) -> list[str]:
    """What is questionable in a tokenizer as it came, in words; nothing here stops a run."""
    found = []
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        found.append("the tokenizer pads with EOS, so an end could not be told from padding: a pad token was added")
    if tokenizer.chat_template and tokenizer.bos_token is not None:
        rendered = _render(tokenizer, (Message("user", "question"),), generation_prompt=True)
        leading = rendered.lstrip().startswith(tokenizer.bos_token) + rendered.lstrip().startswith(
            2 * tokenizer.bos_token
        )
        if leading == 2:
            found.append("the chat template begins with BOS twice: models are trained with one")
        elif leading == 0 and tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
            found.append("the chat template leaves out BOS, which the tokenizer puts before plain text")
    return found


def prepare_tokenizer(tokenizer: Any, origin: str) -> None:
    """Make a tokenizer fit for chat, in place: a pad token that is not EOS, and a chat template.

    The embeddings are enlarged where needed when the model is loaded. Tokenizers that come with a template keep it.

    Raises:
        ModelError: if the tokenizer has no EOS token.
    """
    if tokenizer.eos_token is None:
        raise ModelError(
            f"{origin}: the tokenizer has no EOS token, so an answer could never end. "
            'Set "eos_token" in its tokenizer_config.json.'
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if not tokenizer.chat_template:
        adds_bos = tokenizer.bos_token is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        tokenizer.chat_template = "{{ bos_token }}" * adds_bos + DEFAULT_TEMPLATE
    tokenizer.padding_side = "right"


def stop_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Tokens that end an answer: EOS, those of the generation config, and what the chat template puts behind answers.

    The last matters for base models whose template ends turns with a token of its own (Qwen: `<|im_end|>`).
    """
    extra = getattr(generation_config, "eos_token_id", None)
    named = extra if isinstance(extra, list) else [] if extra is None else [extra]
    probe = (Message("user", "question"), Message("assistant", "answer"))
    behind = _render(tokenizer, probe, generation_prompt=False).rpartition("answer")[2].lstrip()
    template = [id for token, id in tokenizer.get_added_vocab().items() if behind.startswith(token)]
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *named, *template]))


def encode_prompts(tokenizer: Any, prompts: Sequence[Sequence[Message]], *, stops: Sequence[int]) -> list[list[int]]:
    """Token ids of conversations that end with a user turn, up to where the assistant begins to speak.

    Args:
        stops: ids that end an answer.
    Raises:
        ModelError: as `encode`.
    """
    wholes = _render_all(tokenizer, prompts, generation_prompt=True)
    pieces = _pieces(tokenizer, prompts, wholes, stops, complete=None)
    for said, whole in zip(pieces, wholes, strict=True):
        said.append((whole[sum(len(text) for text, _ in said) :], False))
    return [row.tokens for row in _tokenise_pieces(tokenizer, pieces)]


def encode(
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    stops: Sequence[int],
    complete: Sequence[bool] | None = None,
) -> list[Encoded]:
    """Token ids and targets of conversations that end with an assistant turn.

    Text that a template puts behind the last answer's stop token is left out: no policy could have sampled it.

    Args:
        stops: ids that end an answer.
        complete: per conversation, False if its last answer was cut off at a length limit: then no stop token is
            appended. None: all are complete.
    Raises:
        ModelError: if the chat template does not render answers so that they can be found and end with a stop token,
            or cannot render a conversation at all.
    """
    wholes = _render_all(tokenizer, conversations, generation_prompt=False)
    return _tokenise_pieces(tokenizer, _pieces(tokenizer, conversations, wholes, stops, complete=complete))


def encode_texts(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[Encoded]:
    """Plain texts for language modelling: BOS where the tokenizer adds one, EOS at the end, cut into rows.

    A long text becomes several rows of at most `max_tokens`; all tokens but the first of a row are targets. A single
    token teaches nothing: where the last one would stand alone, the row before gives up one. A text of one has no row.

    Args:
        max_tokens: at least 3.
    """
    rows: list[Encoded] = []
    for ids in tokenizer(list(texts)).input_ids if texts else []:
        ids = ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        borders = [*range(0, len(ids), max_tokens), len(ids)]
        if len(ids) % max_tokens == 1 and len(ids) > 1:
            borders[-2] -= 1
        for begin, end in itertools.pairwise(borders):
            if end - begin > 1:
                rows.append(Encoded(ids[begin:end], [False] + [True] * (end - begin - 1)))
    return rows


def decode_answer(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled tokens, without special tokens and surrounding white space."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text.strip()


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
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text


class AnswerStream:
    """A `TextStream` that ends before a stop string, of which nothing is ever given.

    Text that may turn out to be the beginning of a stop string is held back until that is known. If several are
    found, the one that is complete first counts.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._text = TextStream(tokenizer)
        self._stop = stop
        self._held = ""
        self.ended = False  # by a stop string

    def add(self, token: int) -> str:
        """The text that is certain with this token; "" after the end."""
        return self._give(self._text.add(token))

    def finish(self) -> str:
        """What is still held back where no stop string has come."""
        piece = self._give(self._text.finish())
        held, self._held = self._held, ""
        return piece + held

    def _give(self, text: str) -> str:
        if self.ended:
            return ""
        text = self._held + text
        if found := [(begin + len(stop), begin) for stop in self._stop if (begin := text.find(stop)) >= 0]:
            self.ended, self._held = True, ""
            return text[: min(found)[1]]
        longest = max(map(len, self._stop), default=1) - 1
        begins = range(max(0, len(text) - longest), len(text))
        certain = next((at for at in begins if any(stop.startswith(text[at:]) for stop in self._stop)), len(text))
        self._held = text[certain:]
        return text[:certain]


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


def _pieces(
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    wholes: Sequence[str],
    stops: Sequence[int],
    *,
    complete: Sequence[bool] | None,
) -> list[list[tuple[str, bool]]]:
    """Rendered conversations up to their last answers, cut where the assistant begins and ends to speak.

    Returns:
        per conversation (text, is it the assistant's?) of each piece.
    """
    stop_tokens = tokenizer.convert_ids_to_tokens(list(stops))
    hide = _hider(tokenizer)
    answers = [
        (number, turn)
        for number, messages in enumerate(conversations)
        for turn, message in enumerate(messages)
        if message.role == "assistant"
    ]
    befores = _render_all(tokenizer, [conversations[n][:turn] for n, turn in answers], generation_prompt=True)
    pieces: list[list[tuple[str, bool]]] = [[] for _ in conversations]
    cursors = [0] * len(wholes)
    for (number, turn), before in zip(answers, befores, strict=True):
        messages, whole = conversations[number], wholes[number]
        content = hide(messages[turn].content.strip())
        begin = whole.find(content, len(before))
        if not whole.startswith(before) or begin < 0:
            raise ModelError(
                f"the chat template of {tokenizer.name_or_path!r} renders an answer differently inside a conversation "
                "than after its generation prompt, so training and generation would disagree. Use a template whose "
                "generation prompt is how it opens assistant turns."
            )
        end = begin + len(content)
        if complete is None or complete[number] or turn < len(messages) - 1:
            end = _end_of_stop(whole, end, stop_tokens, tokenizer.name_or_path)
        pieces[number] += [(whole[cursors[number] : len(before)], False), (whole[len(before) : end], True)]
        cursors[number] = end
    return pieces


def _end_of_stop(text: str, start: int, stop_tokens: Sequence[str], origin: str) -> int:
    begin = start
    while begin < len(text) and text[begin].isspace():
        begin += 1
    for stop in stop_tokens:
        if text.startswith(stop, begin):
            return begin + len(stop)
    raise ModelError(
        f"the chat template of {origin!r} does not end an assistant turn with a stop token ({', '.join(stop_tokens)}), "
        "so the model could never learn to stop. Add the EOS token after the content of assistant turns."
    )


def _render(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    return _render_all(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def _render_all(tokenizer: Any, conversations: Sequence[Sequence[Message]], *, generation_prompt: bool) -> list[str]:
    if not conversations:
        return []
    hide = _hider(tokenizer)
    turns = [[{"role": turn.role, "content": hide(turn.content)} for turn in turns] for turns in conversations]
    try:
        texts: list[str] = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:
        if len(conversations) > 1:  # by themselves, to find the one
            return [_render(tokenizer, each, generation_prompt=generation_prompt) for each in conversations]
        begins = textwrap.shorten(conversations[0][0].content, 60, placeholder="…")
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path!r} cannot render the conversation that begins "
            f'"{begins}": {error}. Change such conversations (a system text, for one, can open the first user turn), '
            "or give the model another template."
        ) from error
    return texts


# Text that spells a special token ("</s>") must stay text: else a prompt could end turns or forge them. Such spellings
# travel through the template between two private-use characters and are then tokenised as ordinary text.
_HIDDEN = re.compile("\ue000(.*?)\ue001", re.DOTALL)


def _hider(tokenizer: Any) -> Callable[[str], str]:
    special = "|".join(re.escape(token) for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True))
    return partial(re.compile(special).sub, "\ue000\\g<0>\ue001")


def _tokenise_pieces(tokenizer: Any, conversations: Sequence[Sequence[tuple[str, bool]]]) -> list[Encoded]:
    """Tokenise every piece by itself and join those of a conversation."""
    # Every second part of a piece that is split at hidden spellings is one of them.
    parts = [_HIDDEN.split(text) for pieces in conversations for text, _ in pieces]
    plain = iter(_ids(tokenizer, [part for split in parts for part in split[::2]], spelled=False))
    spelled = iter(_ids(tokenizer, [part for split in parts for part in split[1::2]], spelled=True))
    splits = iter(parts)
    rows = []
    for pieces in conversations:
        row = Encoded([], [])
        for _, is_target in pieces:
            before = len(row.tokens)
            for index in range(len(next(splits))):
                row.tokens.extend(next(spelled if index % 2 else plain))
            row.targets.extend([is_target] * (len(row.tokens) - before))
        rows.append(row)
    return rows


def _ids(tokenizer: Any, texts: list[str], *, spelled: bool) -> list[list[int]]:
    """Token ids of texts; where special tokens are `spelled`, they are read as ordinary text."""
    if not texts:
        return []
    # The template writes BOS itself: the tokenizer must not add a second one.
    if not tokenizer.is_fast:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=spelled).input_ids
        return ids
    # What calling the tokenizer adds, masks and offsets, takes a third of the time and is used by nobody here.
    backend = tokenizer.backend_tokenizer
    if spelled:  # rare, so a copy of its own: threads share the other one
        backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = spelled
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
