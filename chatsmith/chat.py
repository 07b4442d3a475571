"""The chat in the terminal: type, read the answer while it is spoken, ask for another one.

With a terminal at both ends there are a prompt, a heading and notes. Otherwise it serves scripts: each line of standard
input is a turn (or a command), standard output carries the answers alone, and the first error ends it.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from chatsmith.assistant import Assistant, Found, Reply, check_settings, find, load
from chatsmith.errors import ChatsmithError, RequestError
from chatsmith.files.checkpoint import read_jsonl
from chatsmith.files.writing import new_file
from chatsmith.runs.runtime import StopSignals
from chatsmith.screen.output import Console, say
from chatsmith.screen.text import unbroken
from chatsmith.seeds import derive_seed
from chatsmith.stages.table import SAMPLES, TABLE
from chatsmith.types import Message

with contextlib.suppress(ImportError):
    import readline  # gives input() line editing and history

    # a pasted text of several lines is one question: Python turns this off; macOS's libedit does not know it
    readline.parse_and_bind("set enable-bracketed-paste on")

COMMANDS = {
    "/regen": "another answer to the last question",
    "/clear": "begin a new conversation; a system text stays",
    "/system TEXT": "tell the model what to be; without TEXT, nothing any more",
    "/save FILE.jsonl": "write the conversation to a new file that --data reads",
    "/help": "this list",
    "/quit": "leave; so do Ctrl-D, and Ctrl-C twice",
}
EXAMPLES = 3
LONGEST_EXAMPLE = 72


def chat(
    path: str,
    *,
    stage: str | None,
    system: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    stop: Sequence[str],
    seed: int | None,
) -> None:
    """Talk with the model at `path` until the user leaves.

    Args:
        path, stage: see `assistant.load`.
        system: text of the system turn; "" for none.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop: see `Assistant.stream`.
        seed: the same seed and the same lines give the same answers; None draws one.
    Raises:
        ChatsmithError: if there is no such model; without a terminal, also where a line cannot be answered.
    """
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
    }
    check_settings(**settings)
    screen = _Screen(interactive=sys.stdin.isatty() and sys.stdout.isatty())
    found = find(path, stage)
    assistant = load(path, stage=stage)
    talk = Talk(assistant, settings, seed=secrets.randbits(63) if seed is None else seed, alone=_learned_single(found))
    talk.system = system
    if screen.interactive:
        _introduce(screen, path, found, assistant)
    try:
        for line in screen.lines():
            if line in ("/quit", "/exit"):
                break
            try:
                if line.startswith("/") and "\n" not in line:
                    _obey(talk, line, screen)
                else:
                    _answer(talk, line.strip(), talk.said, screen)
            except ChatsmithError as error:
                if not screen.interactive:
                    raise
                screen.note(str(error), "red")
            screen.note("")
    except KeyboardInterrupt:
        if not screen.interactive:
            raise SystemExit(130) from None
        screen.note("")
    except BrokenPipeError:  # the reader of the answers has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes nowhere


@dataclass(frozen=True)
class Exchange:
    """A question and its answer; `cut` where the answer did not end by itself."""

    question: str
    answer: str
    cut: bool


class Talk:
    """A conversation with an assistant: what has been said, and how the next answer is drawn."""

    def __init__(self, assistant: Assistant, settings: Mapping[str, Any], *, seed: int, alone: bool) -> None:
        """
        Args:
            alone: ask every question by itself, without what was said before.
        """
        self.assistant = assistant
        self.system = ""
        self.said: list[Exchange] = []
        self.settings = settings
        self._seed = seed
        self._alone = alone
        self._answers = 0

    def ask(self, question: str, before: Sequence[Exchange]) -> Reply:
        """A fresh answer to a question after what was said before."""
        self._answers += 1
        messages = self._messages(() if self._alone else before)
        seed = derive_seed(self._seed, "chat", self._answers)
        return self.assistant.stream([*messages, Message("user", question)], seed=seed, **self.settings)

    def records(self) -> list[dict[str, Any]]:
        """What has been said in the format "chat" of the data reader, one record per conversation."""
        conversations = [[exchange] for exchange in self.said] if self._alone else [self.said]
        return [{"messages": [vars(turn) for turn in self._messages(said)]} for said in conversations if said]

    def _messages(self, said: Sequence[Exchange]) -> list[Message]:
        turns = [Message("system", self.system)] if self.system else []
        for exchange in said:
            turns += [Message("user", exchange.question), Message("assistant", exchange.answer)]
        return turns


class _Screen:
    """Where lines come from and answers go. Control characters never reach the terminal."""

    def __init__(self, *, interactive: bool) -> None:
        self.interactive = interactive
        self._console = Console(highlight=False, stderr=not interactive)
        for stream in (sys.stdin, sys.stdout):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # bytes that are no text stay readable

    def lines(self) -> Iterator[str]:
        """What the user types or pastes, without white space around it and without empty lines."""
        warned = False
        while True:
            try:
                line = input("> ") if self.interactive else input()
            except EOFError:
                self.note("")
                return
            except KeyboardInterrupt:
                if warned or not self.interactive:
                    raise
                warned = True
                self.note("")
                self.note("(Ctrl-C once more leaves; so do Ctrl-D and /quit)")
                continue
            warned = False
            if line.strip():
                # a space before it makes a line that begins with / a message
                yield line.rstrip() if line.startswith(" ") else line.strip()

    def note(self, text: str, style: str = "dim") -> None:
        """Something that the model did not say."""
        if self.interactive or text:
            self._console.print(Text(unbroken(text), style=style))

    def say(self, text: str) -> None:
        """Text of the model, as soon as there is some."""
        say(text, end="")


def _introduce(screen: _Screen, path: str, found: Found, assistant: Assistant) -> None:
    model = assistant.model
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    size_text = f"{size / 1000:.1f} B" if size >= 1000 else f"{size:.1f} M"
    what = f"{path}, {found.who} ({found.stage})" if found.stage is not None else path
    screen.note(f"{what}: {model.config.model_type}, {size_text} parameters, on {model.device.type}", "bold")
    if found.left_by is not None and found.entry is not None:
        entry = found.entry
        unfit = f", unfit for {'; '.join(entry.unfit_for)}" if entry.unfit_for else ""
        said = f"{found.left_by.name} {entry.status}{unfit}: {entry.headline or entry.verdict}"  # old runs lack one
        screen.note(said, "green" if entry.status == "passed" and not unfit else "yellow")
        for index, prompt in enumerate(_examples(path)):
            screen.note(("Try: " if index == 0 else "     ") + prompt, "")
    if _learned_single(found):
        screen.note("It has learned single questions only: each is asked by itself, without what was said before.")
    screen.note("/help lists the commands; /quit or Ctrl-D leaves.")
    screen.note("")


def _examples(run: str) -> list[str]:
    """Prompts that this run has kept for looking, from all over the file: it may be sorted."""
    files = [Path(run).expanduser() / stage.name / SAMPLES for stage in TABLE if stage.shows_answers]
    prompts = [row["prompt"] for file in files for row in read_jsonl(file, prompt=str)]
    short = list(dict.fromkeys(p for p in prompts if len(p) <= LONGEST_EXAMPLE and "\n" not in p))
    short.sort(key=lambda prompt: not prompt.isascii())  # some that every keyboard can type come first
    return short[:: max(1, len(short) // EXAMPLES)][:EXAMPLES]


def _learned_single(found: Found) -> bool:
    """Whether the model is of the task world, whose demonstrations are single questions.

    Asked a second one in the same conversation, it gets most of them wrong that it gets right alone.
    """
    return found.manifest is not None and found.manifest.config.world is not None


def _answer(talk: Talk, question: str, before: Sequence[Exchange], screen: _Screen) -> None:
    """Ask, show the answer while it is spoken, and keep it. Ctrl-C stops the answer and nothing else."""
    try:
        reply = talk.ask(question, before)
    except RequestError as error:
        if not before:
            raise
        raise RequestError(f"{error} (/clear)") from error
    answer = ""
    with StopSignals() as stop:  # noted between two pieces: an exception inside the model's code could get lost
        for piece in reply:
            answer += piece
            screen.say(piece)
            if stop.received is not None:
                reply.close()
                break
    screen.say("\n")
    if stop.received == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if stop.received is not None and not screen.interactive:
        raise KeyboardInterrupt
    if stop.received is not None:
        screen.note("(stopped)")
    elif reply.finish_reason == "length" and reply.limit < talk.settings["max_new_tokens"]:
        screen.note(f"(stopped: {talk.assistant.max_tokens} tokens are all that the model takes; /clear begins anew)")
    elif reply.finish_reason == "length":
        screen.note(f"(stopped at {reply.limit} tokens: --max-new-tokens)")
    if answer:
        talk.said = [*before, Exchange(question, answer, cut=reply.finish_reason != "stop")]
    else:
        screen.note("(no answer, so nothing is remembered)")


def _obey(talk: Talk, line: str, screen: _Screen) -> None:
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    if command == "/help":
        for name, meaning in COMMANDS.items():
            screen.note(f"  {name:18}{meaning}", "")
    elif command == "/clear":
        talk.said.clear()
        screen.note("(a new conversation)")
    elif command == "/system":
        talk.system = argument
        screen.note(f"(system: {argument})" if argument else "(no system text)")
    elif command == "/regen":
        if not talk.said:
            raise RequestError("/regen: nothing has been answered yet.")
        _answer(talk, talk.said[-1].question, talk.said[:-1], screen)
    elif command == "/save":
        screen.note(f"({_save(talk, argument)})")
    else:
        raise RequestError(
            f"no command {command}: /help lists them. A message may begin with / if a space stands before it."
        )


def _save(talk: Talk, name: str) -> str:
    """Write what has been said to a new file; returns what was done, in words."""
    records = talk.records()
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise RequestError(f"/save: {error}") from error
    if path.suffix != ".jsonl":
        raise RequestError("/save takes the name of a file that ends in .jsonl.")
    if not records:
        raise RequestError("/save: nothing has been answered yet.")
    try:
        new_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except FileExistsError as error:
        raise RequestError(f"/save: {path} exists and stays as it is. Choose another name.") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"/save: {path} cannot be written: {error}.") from error
    cut = sum(exchange.cut for exchange in talk.said)
    warning = f"; {cut} of the answers did not end by themselves" if cut else ""
    return f"{len(talk.said)} answers saved to {path}{warning}"
