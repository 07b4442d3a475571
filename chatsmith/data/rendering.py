"""Conversations as a chat template writes them, cut where the assistant begins and ends to speak.

The template sees a placeholder for each answer, and the answer is put where the placeholder came out: nobody searches
for a text that may stand there twice. In data the template must not treat an answer in any other way; what a policy
says is taken as it is. What the template itself puts in front of every answer (`wrap`, such as an empty think block) is
said by a policy with its answer, and is no part of the answer's text.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2 import TemplateError

from chatsmith.data.control import Control
from chatsmith.errors import ConversationError, ForeignError, ModelError, foreign
from chatsmith.files.bounds import Unbounded, bounded
from chatsmith.types import Message

MOST_LETTERS = 1 << 20  # that a template may write of its own
MOST_TIMES = 20  # and how often what it was given

T = TypeVar("T")
Pieces = list[tuple[str, bool]]  # of a conversation: text for `Control.encode`, and whether it is the assistant's
_Turn = dict[str, str]


def or_raise(outcome: T | ConversationError) -> T:
    """What came out, unless it is an error."""
    if isinstance(outcome, ConversationError):
        raise outcome
    return outcome


def beginning(text: str) -> str:
    """Of a conversation, to tell which one an error is about."""
    return textwrap.shorten(text, 60, placeholder="…")


@dataclass(frozen=True)
class Renderer:
    """The chat template of a tokenizer."""

    tokenizer: Any
    control: Control

    def pieces(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        stops: Sequence[int],
        cut_off: Sequence[bool],
        open_ended: bool,
        as_said: bool,
    ) -> list[Pieces | ConversationError]:
        """Rendered conversations up to their last answers, or why one cannot be.

        Args:
            stops: ids that end an answer.
            cut_off: of each, whether its last answer has no end.
            open_ended: whether they end with a user's turn: then up to where the assistant is about to speak.
            as_said: whether answers are taken as they are, also where the template would change them.
        Raises:
            ModelError: unless `as_said`, if it opens answers not as its generation prompt does, or does not end them.
        """
        wholes = self.render([self._seen(talk) for talk in conversations], generation_prompt=open_ended)
        answers = [(n, p) for n, talk in enumerate(conversations) for p, t in enumerate(talk) if t.role == "assistant"]
        before = self.render([self._seen(conversations[n][:place]) for n, place in answers], generation_prompt=True)
        befores = dict(zip(answers, before, strict=True))
        real: list[str | ConversationError] = []
        if not as_said:
            real = self.render([self._seen(talk, answers_too=True) for talk in conversations], generation_prompt=False)
        stop_tokens = [token for token in self.tokenizer.convert_ids_to_tokens(list(stops)) if token]
        stop_tokens.sort(key=len, reverse=True)
        results: list[Pieces | ConversationError] = []
        for number, talk in enumerate(conversations):
            try:
                whole = or_raise(wholes[number])
                if not as_said:
                    self._check_unchanged(talk, whole, or_raise(real[number]))
                opened = {place: befores[number, place] for place, t in enumerate(talk) if t.role == "assistant"}
                ends = {place: not cut_off[number] or place < len(talk) - 1 for place in opened}
                results.append(self._cut(talk, whole, opened, ends, stop_tokens, open_ended, as_said))
            except ConversationError as error:
                results.append(error)
        return results

    def render(self, conversations: Sequence[list[_Turn]], *, generation_prompt: bool) -> list[str | ConversationError]:
        """What the template writes, or why it cannot."""
        if not conversations:
            return []
        try:
            with foreign(), bounded():
                texts = list(
                    self.tokenizer.apply_chat_template(
                        conversations, tokenize=False, add_generation_prompt=generation_prompt
                    )
                )
            self._check_lengths(conversations, texts)
            return texts
        except ForeignError as error:
            if isinstance(error.__cause__, Unbounded):
                raise ModelError(
                    f"the chat template of {self.tokenizer.name_or_path!r} does not come to an end: {error.__cause__}. "
                    "Give the model another template."
                ) from error
            if len(conversations) > 1:  # by themselves, to find the one
                return [self.render([each], generation_prompt=generation_prompt)[0] for each in conversations]
            reason = error.__cause__ if isinstance(error.__cause__, TemplateError) else error
            first = self.control.show(conversations[0][0]["content"]) if conversations[0] else ""
            return [
                ConversationError(
                    f"the chat template of {self.tokenizer.name_or_path!r} cannot render the conversation that begins "
                    f'"{beginning(first)}": {reason}. Change such conversations (a system text, for one, can open the '
                    "first user turn), or give the model another template."
                )
            ]

    def _check_lengths(self, conversations: Sequence[list[_Turn]], texts: Sequence[Any]) -> None:
        """Refuse a template that writes far more than it was given."""
        for conversation, text in zip(conversations, texts, strict=True):
            given = sum(len(turn["content"]) for turn in conversation)
            if not isinstance(text, str) or len(text) > MOST_LETTERS + MOST_TIMES * given:
                raise ModelError(
                    f"the chat template of {self.tokenizer.name_or_path!r} makes {len(text):,} characters of a "
                    f"conversation of {given:,}. Give the model another template."
                )

    def probe(self) -> tuple[str, str]:
        """What the template writes between its generation prompt and an answer, and behind the answer.

        Raises:
            ConversationError: if it cannot render the simplest conversation.
        """
        asked = {"role": "user", "content": "question"}
        answered = {"role": "assistant", "content": self._placeholder(1)}
        before = or_raise(self.render([[asked]], generation_prompt=True)[0])
        whole = or_raise(self.render([[asked, answered]], generation_prompt=False)[0])
        ahead, _, behind = whole.partition(self._placeholder(1))
        return ahead[len(before) :] if ahead.startswith(before) else "", behind

    def wrap(self) -> str:
        """What the template puts in front of every answer, without white space around it."""
        try:
            return self.probe()[0].strip()
        except ConversationError:  # then each conversation says so
            return ""

    def _placeholder(self, place: int) -> str:
        return f"{self.control.placeholder}{place}{self.control.placeholder}"

    def _seen(self, talk: Sequence[Message], *, answers_too: bool = False) -> list[_Turn]:
        """A conversation as the template sees it."""
        turns = []
        for place, turn in enumerate(talk):
            text = turn.content
            if turn.role != "assistant":
                text = self.control.hide(text)
            elif not answers_too:  # white space around an answer is the template's affair, the rest of it is not
                bare = text.strip()
                begin = text.find(bare)
                text = f"{text[:begin]}{self._placeholder(place)}{text[begin + len(bare) :]}"
            turns.append({"role": turn.role, "content": text})
        return turns

    def _check_unchanged(self, talk: Sequence[Message], whole: str, real: str) -> None:
        """Refuse a conversation of which the template makes something else than answers in their places."""
        for place, turn in enumerate(talk):
            if turn.role == "assistant":
                whole = whole.replace(self._placeholder(place), turn.content.strip())
        if real != whole:
            raise ConversationError(
                f"the chat template of {self.tokenizer.name_or_path!r} changes an answer in the conversation that "
                f'begins "{beginning(talk[0].content)}", so it could not be learned as it stands. Take out what the '
                "template treats by itself, such as a think block, or give the model another template."
            )

    def _cut(
        self,
        talk: Sequence[Message],
        whole: str,
        befores: dict[int, str | ConversationError],
        ends: dict[int, bool],
        stop_tokens: Sequence[str],
        open_ended: bool,
        as_said: bool,
    ) -> Pieces:
        """A rendered conversation in pieces.

        Args:
            befores: of each answer, by its place, what is rendered before it with the generation prompt.
            ends: whether it has an end.
        """
        pieces: Pieces = []
        cursor = 0
        for place, before in befores.items():
            placeholder = self._placeholder(place)
            at = whole.find(placeholder, cursor)
            if at < 0 or whole.count(placeholder) > 1:
                raise ConversationError(
                    f"the chat template of {self.tokenizer.name_or_path!r} leaves out an answer of the conversation "
                    f'that begins "{beginning(talk[0].content)}", or writes it more than once. Give the model another '
                    "template."
                )
            begin = at
            if isinstance(before, str) and whole.startswith(before) and cursor <= len(before) <= at:
                begin = len(before)
            elif not as_said:
                raise ModelError(
                    f"the chat template of {self.tokenizer.name_or_path!r} renders an answer differently inside a "
                    "conversation than after its generation prompt, so training and generation would disagree. Use a "
                    "template whose generation prompt is how it opens assistant turns."
                )
            behind = end = at + len(placeholder)
            if ends[place]:
                end = self._end_of_stop(whole, behind, stop_tokens)
                if end == behind and not as_said:
                    raise ModelError(
                        f"the chat template of {self.tokenizer.name_or_path!r} does not end an assistant turn with a "
                        f"stop token ({', '.join(stop_tokens)}), so the model could never learn to stop. Add the EOS "
                        "token after the content of assistant turns."
                    )
            answer = self.control.hide(talk[place].content.strip())
            pieces += [(whole[cursor:begin], False), (f"{whole[begin:at]}{answer}{whole[behind:end]}", True)]
            cursor = end
        return [*pieces, (whole[cursor:], False)] if open_ended else pieces

    def _end_of_stop(self, text: str, start: int, stop_tokens: Sequence[str]) -> int:
        """Behind the stop token that follows, after white space, and what it swallows; `start` if none does."""
        begin = _behind_space(text, start)
        stop = next((stop for stop in stop_tokens if text.startswith(stop, begin)), None)
        if stop is None:
            return start
        end = begin + len(stop)
        return _behind_space(text, end) if stop in self.control.strips_right else end


def _behind_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
