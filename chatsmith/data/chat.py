"""From messages to tokens, the same way in every stage, in chat and in serving.

A conversation is rendered by the tokenizer's own chat template and then cut at the borders of the assistant's turns;
each piece is tokenised by itself. So the prompt of a training example has exactly the tokens that generation starts
from, and the answer exactly the tokens that a policy could have sampled. Masks are made here and travel with the
data: nobody later guesses what a token is from its value.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatsmith.data.control import Control, control_of
from chatsmith.data.rendering import Pieces, Renderer, beginning, or_raise
from chatsmith.errors import ConversationError, ForeignError, ModelError, foreign
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
        question = {"role": "user", "content": "question"}
        renderer = Renderer(tokenizer, control_of(tokenizer))
        rendered = or_raise(renderer.render([[question]], generation_prompt=True)[0])
        leading = rendered.lstrip().startswith(tokenizer.bos_token) + rendered.lstrip().startswith(
            2 * tokenizer.bos_token
        )
        if leading == 2:
            found.append("the chat template begins with BOS twice: models are trained with one")
        elif leading == 0 and tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
            found.append("the chat template leaves out BOS, which the tokenizer puts before plain text")
    if tokenizer.chat_template:
        control = control_of(tokenizer)
        if wrap := control.wrap:
            found.append(
                f"the chat template puts {wrap!r} in front of every answer: it is learned with the answers, and is no "
                "part of their text"
            )
        if unspeakable := control.unspeakable():
            found.append(
                f"the tokenizer has no ordinary tokens for the letters of {unspeakable[0]!r} and "
                f"{len(unspeakable) - 1} other control tokens: where such a text is typed, it is read as unknown"
            )
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
    behind = Renderer(tokenizer, control_of(tokenizer)).probe()[1].lstrip()
    template = [token for token in tokenizer.get_added_vocab() if behind.startswith(token)]
    ends = [tokenizer.get_added_vocab()[max(template, key=len)]] if template else []
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *named, *ends]))


def encode_prompts(tokenizer: Any, prompts: Sequence[Sequence[Message]], *, stops: Sequence[int]) -> list[list[int]]:
    """Token ids of conversations that end with a user turn, up to where the assistant begins to speak.

    Args:
        stops: ids that end an answer.
    Raises:
        ConversationError: for the first that the template or the tokenizer cannot carry.
    """
    return [or_raise(tokens) for tokens in try_encode_prompts(tokenizer, prompts, stops=stops)]


def try_encode_prompts(
    tokenizer: Any, prompts: Sequence[Sequence[Message]], *, stops: Sequence[int]
) -> list[list[int] | ConversationError]:
    """The same, with the error in the place of each that cannot be carried."""
    rows = _encode(tokenizer, prompts, stops=stops, complete=None, open_ended=True, as_said=True)
    return [row if isinstance(row, ConversationError) else row.tokens for row in rows]


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
        ConversationError: for the first that the template or the tokenizer cannot carry as it is.
        ModelError: if the chat template opens answers otherwise than its generation prompt, or does not end them.
    """
    rows = _encode(tokenizer, conversations, stops=stops, complete=complete, open_ended=False, as_said=False)
    return [or_raise(row) for row in rows]


def try_encode(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, stops: Sequence[int]
) -> list[Encoded | ConversationError]:
    """The same of complete ones, with the error in the place of each that cannot be carried."""
    return _encode(tokenizer, conversations, stops=stops, complete=None, open_ended=False, as_said=False)


def encode_said(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, stops: Sequence[int], complete: Sequence[bool]
) -> list[Encoded | ConversationError]:
    """The same of answers that a policy has said, whatever they are: the template is not asked to treat them."""
    return _encode(tokenizer, conversations, stops=stops, complete=complete, open_ended=False, as_said=True)


def encode_texts(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[Encoded]:
    """Plain texts for language modelling: BOS where the tokenizer adds one, EOS at the end, cut into rows.

    A long text becomes several rows of at most `max_tokens`; all tokens but the first of a row are targets. A single
    token teaches nothing: where the last one would stand alone, the row before gives up one. A text of one has no row.

    Args:
        max_tokens: at least 3.
    """
    rows: list[Encoded] = []
    try:
        with foreign():
            encoded = tokenizer(list(texts)).input_ids if texts else []
    except ForeignError as error:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} cannot read a text: {error}.") from error
    for ids in encoded:
        ids = ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        borders = [*range(0, len(ids), max_tokens), len(ids)]
        if len(ids) % max_tokens == 1 and len(ids) > 1:
            borders[-2] -= 1
        for begin, end in itertools.pairwise(borders):
            if end - begin > 1:
                rows.append(Encoded(ids[begin:end], [False] + [True] * (end - begin - 1)))
    return rows


def _encode(
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    stops: Sequence[int],
    complete: Sequence[bool] | None,
    open_ended: bool,
    as_said: bool,
) -> list[Encoded | ConversationError]:
    """Conversations as tokens, or why one cannot be: see `Renderer.pieces`."""
    cut_off = [complete is not None and not complete[number] for number in range(len(conversations))]
    try:
        control = control_of(tokenizer, (turn.content for turns in conversations for turn in turns))
    except ConversationError as error:
        if len(conversations) == 1:
            return [error]
        options: dict[str, Any] = {"stops": stops, "open_ended": open_ended, "as_said": as_said}
        alone = zip(conversations, cut_off, strict=True)
        return [_encode(tokenizer, [each], complete=[not cut], **options)[0] for each, cut in alone]
    pieces = Renderer(tokenizer, control).pieces(
        conversations, stops=stops, cut_off=cut_off, open_ended=open_ended, as_said=as_said
    )
    return _tokenised(tokenizer, control, pieces)


def _tokenised(
    tokenizer: Any, control: Control, conversations: Sequence[Pieces | ConversationError]
) -> list[Encoded | ConversationError]:
    """Tokenise every piece by itself and join those of a conversation."""
    texts = [text for pieces in conversations if isinstance(pieces, list) for text, _ in pieces]
    try:
        with foreign():
            ids = iter(control.encode(texts))
    except ForeignError as error:
        if len(conversations) > 1:
            return [_tokenised(tokenizer, control, [each])[0] for each in conversations]
        return [
            ConversationError(
                f"the tokenizer of {tokenizer.name_or_path!r} cannot read the conversation that begins "
                f'"{beginning(control.show(texts[0]))}": {error}. Change it, or leave it out.'
            )
        ]
    rows: list[Encoded | ConversationError] = []
    for pieces in conversations:
        if isinstance(pieces, ConversationError):
            rows.append(pieces)
            continue
        row = Encoded([], [])
        for _, is_target in pieces:
            tokens = next(ids)
            row.tokens.extend(tokens)
            row.targets.extend([is_target] * len(tokens))
        rows.append(row)
    return rows
