"""An assistant in Python: load a model, ask it, read the answer while it is spoken.

    assistant = chatsmith.load("runs/tiny-cpu")
    assistant.chat("What is the capital of France?")

All its answers come from one engine, which lives as long as the model; one that is given up halfway leaves nothing
behind. torch and transformers are loaded by what needs them: a path or a setting that is wrong is refused at once.
"""

import math
import os
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from chatsmith import __version__
from chatsmith.card import card, stated_licence
from chatsmith.config import EngineConfig
from chatsmith.data.chat import encode_prompts
from chatsmith.data.formats import to_record
from chatsmith.engine.scheduler import Request, Sampling
from chatsmith.engine.text import Speech, stop_strings
from chatsmith.errors import ConfigError, DataError, ModelError, RequestError, RunError
from chatsmith.files.writing import replace_directory
from chatsmith.runs.manifest import Manifest, StageEntry, is_run, read_manifest
from chatsmith.runs.runtime import choose_device, choose_dtype
from chatsmith.screen.text import quoted
from chatsmith.seeds import derive_seed
from chatsmith.stages.table import TABLE, VOICES, Stage, named
from chatsmith.types import FinishReason, Message

if TYPE_CHECKING:
    from chatsmith.engine.engine import Engine

Conversation = str | Sequence[Message | Mapping[str, Any]]

MAX_NEW_TOKENS = 512
TEMPERATURE = 0.7
TOP_P = 0.95
MAX_TOKENS_WITHOUT_LIMIT = 4096  # prompt and answer of a model whose architecture sets no limit (ALiBi)


@dataclass(frozen=True)
class Assistant:
    """A causal language model ready to be asked or trained, with all that belongs to it."""

    model: Any
    tokenizer: Any
    stops: tuple[int, ...]
    max_tokens: int  # prompt and answer together
    max_batch: int = EngineConfig().max_batch  # answers that are generated together
    compiled: bool = False  # whether decoding is compiled, which takes a minute at first

    @cached_property
    def engine(self) -> "Engine":
        """What it speaks with, made when it is first asked for; `Engine.refresh` when the weights move."""
        from chatsmith.engine.engine import Engine

        return Engine(self.model, max_batch=self.max_batch, compiled=self.compiled)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a model of its own, and so an engine of its own."""
        return {name: value for name, value in vars(self).items() if name != "engine"}

    def fitted(self, settings: EngineConfig) -> "Assistant":
        """This one, or if its engine is not as the settings say, the same model with another engine."""
        if (self.max_batch, self.compiled) == (settings.max_batch, settings.compile):
            return self
        return replace(self, max_batch=settings.max_batch, compiled=settings.compile)

    def stream(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> "Reply":
        """The answer, piece by piece; joined, the pieces are what `chat` returns for the same seed.

        Args:
            messages: what the user says, or a conversation that ends with a user turn: {"role", "content"} mappings
                or `Message`s, a system turn first or none, then user and assistant in turn.
            max_new_tokens: fewer are sampled where the model's `max_tokens` leaves room for fewer.
            temperature: 0 takes the most likely token.
            top_p: draw from the most likely tokens that hold this much of the mass; 1 keeps all.
            top_k: draw from this many of the most likely tokens; 0 keeps all.
            repetition_penalty: above 1, tokens of the conversation and the answer become less likely, as in
                transformers; 1 is off.
            stop: strings (or one) of which the first to appear ends the answer; it is not part of it.
            seed: the same seed gives the same answer; None draws one.
        Raises:
            RequestError: if the conversation is malformed or leaves no room for an answer, or a setting is out of
                range.
        """
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        check_settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            stop=stop,
        )
        prompt = self._encode(read_conversation(messages))
        room = self.max_tokens - len(prompt)
        if room < 1:
            raise RequestError(
                f"the conversation has {len(prompt)} tokens and the model takes {self.max_tokens}, its answer "
                "included: there is no room for one. Shorten the conversation, or begin a new one."
            )
        request = Request(
            tokens=tuple(prompt),
            max_new_tokens=min(max_new_tokens, room),
            stops=self.stops,
            sampling=Sampling(temperature, top_k, top_p, repetition_penalty),
            seeds=(derive_seed(secrets.randbits(63) if seed is None else seed, "answer"),),
            watch=stop_strings(self.tokenizer, stop) if stop else None,
        )
        return Reply(self, request, stop)

    def chat(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = TEMPERATURE,
        top_p: float = TOP_P,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> str:
        """The whole answer. Arguments and errors: see `stream`."""
        reply = self.stream(
            messages,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
        )
        return "".join(reply)

    def save(self, directory: str | Path) -> None:
        """Write the model as a complete Hugging Face directory that `load` and plain transformers read.

        Raises:
            RunError: if it cannot be written, or `directory` holds anything but a model that was saved here before.
        """
        from chatsmith.models.load import save_model, was_saved_here

        directory = Path(directory)
        if not directory.name:  # such as "."
            directory = Path(os.path.abspath(directory))
        if directory.is_dir() and any(directory.iterdir()) and not was_saved_here(directory):
            raise RunError(
                f"{quoted(directory)}: not empty, and what is in it was not saved by chatsmith. Choose another one."
            )
        base = str(self.model.name_or_path)
        text = card(
            "Assistant",
            tags=(),
            made=f"Saved from Python with chatsmith {__version__}: what was done to it since its base is not recorded.",
            base=base,
            licences=[(f"base {base}" if base else "base", stated_licence(base)), ("data since then", None)],
        )
        replace_directory(
            directory,
            lambda path: save_model(self.model, self.tokenizer, path, stops=self.stops, card=text),
        )

    def _encode(self, messages: tuple[Message, ...]) -> list[int]:
        try:
            (prompt,) = encode_prompts(self.tokenizer, [messages], stops=self.stops)
        except ModelError as error:
            raise RequestError(str(error)) from error
        return prompt


class Reply(Iterator[str]):
    """An answer while it is spoken: iterate over it for pieces of text, none of them empty.

    `close`, or letting go of it, gives the answer up and frees what it holds.
    """

    def __init__(self, assistant: Assistant, request: Request, stop: Sequence[str]) -> None:
        self.limit = request.max_new_tokens
        self.tokens: list[int] = []  # without a stop token; where a stop string ends the answer, its tokens are here
        self.finish_reason: FinishReason | None = None  # None while it is spoken, and where it was given up
        self._pieces = self._speak(
            assistant.engine, Speech(assistant.tokenizer, stops=request.stops, stop=stop), request
        )

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    def _speak(self, engine: "Engine", speech: Speech, request: Request) -> Generator[str, None, None]:
        with closing(engine.stream(request)) as tokens:
            for token, self.finish_reason in tokens:
                if token not in request.stops:
                    self.tokens.append(token)
                if piece := speech.add(token, last=self.finish_reason is not None):
                    yield piece


def check_settings(
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    stop: Sequence[str],
) -> None:
    """Refuse settings with which nothing can be sampled.

    Raises:
        RequestError: naming the setting and its range.
    """
    if max_new_tokens < 1:
        raise RequestError(f"max_new_tokens = {max_new_tokens}: an answer needs at least 1.")
    if not 0 <= temperature < math.inf:
        raise RequestError(f"temperature = {temperature}: it is 0 (always the most likely token) or more.")
    if not 0 < top_p <= 1:
        raise RequestError(f"top_p = {top_p}: it is above 0 and at most 1 (all tokens).")
    if top_k < 0:
        raise RequestError(f"top_k = {top_k}: it is 0 (all tokens) or more.")
    if not 0 < repetition_penalty < math.inf:
        raise RequestError(f"repetition_penalty = {repetition_penalty}: it is above 0; 1 is off.")
    if "" in stop:
        raise RequestError('stop = "": every answer holds it. Leave it out.')


def read_conversation(messages: Conversation) -> tuple[Message, ...]:
    """The turns of a conversation that waits for an answer, checked as data is.

    Raises:
        RequestError: if a turn lacks its role or content, if the turns are out of order, or if none waits.
    """
    if isinstance(messages, str):
        messages = (Message("user", messages),)
    turns = [vars(turn) if isinstance(turn, Message) else turn for turn in messages]
    try:
        record = to_record({"messages": turns}, origin="messages")
    except DataError as error:
        raise RequestError(f"messages: {error}.") from error
    if record.answers:
        raise RequestError(
            "messages: the last turn is the assistant's, so nobody waits for an answer. End with a user."
        )
    return record.prompt


@dataclass(frozen=True)
class Found:
    """A model that can speak, and what its run says of it; a model that is not of a run has neither stage nor run."""

    location: str  # a directory or a hub id
    stage: str | None = None  # of `VOICES`
    manifest: Manifest | None = None
    left_by: Stage | None = None

    @property
    def who(self) -> str:
        """What it is in its run, for people."""
        assert self.stage is not None and self.manifest is not None, "a model of a run"
        return named(VOICES[self.stage].who, self.manifest.config.rl.algorithm)

    @property
    def entry(self) -> StageEntry | None:
        """What the run says of the stage that left the model."""
        return self.manifest.stages[self.left_by.name] if self.manifest and self.left_by else None


def find(path: str | Path, stage: str | None = None) -> Found:
    """The model that `path` means: a run's (by default that of the last stage which leaves one), or the one there.

    Raises:
        ConfigError: if there is no such stage, or `path` is no run and has none.
        RunError: if the run has no model of this stage (yet), or there is no such directory.
        ModelError: if the directory holds a model that only judges.
    """
    if stage is not None and stage not in VOICES:
        raise ConfigError(f'no stage "{stage}" that speaks; there are {", ".join(VOICES)}.')
    directory = Path(path).expanduser()
    if is_run(directory):
        return _find_in_run(directory, stage)
    # what looks like a hub id is not looked up there if it names a place that chatsmith or the user has made
    local = directory.parent.is_dir() or directory.parts[:1] == ("runs",)
    if not directory.exists() and local and len(directory.parts) > 1:
        raise RunError(f"{path}: no such directory.{_neighbours(directory.parent)}")
    if directory.is_file():
        raise RunError(f"{path}: a file. Give a run directory, a model directory or a hub id.")
    if stage is not None:
        raise ConfigError(f"{path}: no run (it has no manifest.json), so there is no stage to choose: leave it out.")
    if (directory / "value_head.safetensors").exists():
        raise ModelError(f"{path}: a critic, which judges and does not speak. The model beside it is actor.")
    return Found(str(directory) if directory.exists() else str(path))


def load(path: str | Path, *, stage: str | None = None, device: str = "auto", dtype: str = "auto") -> Assistant:
    """An assistant from a run directory, a model directory or a hub id.

    Args:
        stage: of a run: a name of `VOICES`, such as "ema". None: that of the last finished stage.
        device: "auto", "cpu" or "cuda"; auto takes a GPU where there is one.
        dtype: "auto", "float32" or "bfloat16"; auto is bfloat16 on a GPU.
    Raises:
        ChatsmithError: see `find`; ModelError if the model there cannot be loaded or does not speak.
    """
    try:
        config = EngineConfig.model_validate({"device": device, "dtype": dtype})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} = {first['input']!r}: {first['msg'].lower()}.") from error
    location = find(path, stage).location

    from chatsmith.models.load import context_length, load_actor, load_stop_ids, load_tokenizer

    chosen = choose_device(config)
    tokenizer = load_tokenizer(location)
    model = load_actor(location, tokenizer, dtype=choose_dtype(config, chosen), device=chosen)
    max_tokens = context_length(model) or MAX_TOKENS_WITHOUT_LIMIT
    return Assistant(model, tokenizer, load_stop_ids(location, tokenizer), max_tokens)


def _find_in_run(run: Path, stage: str | None) -> Found:
    manifest = read_manifest(run)
    # what the manifest does not call finished may be of an attempt before
    there = [
        Found(str(location), name, manifest, left_by)
        for left_by in reversed(TABLE)
        for name, voice in left_by.voices.items()
        if left_by.name in manifest.stages and (location := run / left_by.name / voice.folder).is_dir()
    ]
    if not there:
        raise RunError(
            f"{run}: no stage that speaks is finished yet. Let the run go on: its first one is {next(iter(VOICES))}."
        )
    for found in there:
        if stage in (None, found.stage):
            return found
    raise RunError(f"{run}: has no {stage} model (yet). It has: {', '.join(str(found.stage) for found in there)}.")


def _neighbours(folder: Path) -> str:
    """What may have been meant instead."""
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    return f" In {folder} there are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}." if names else ""
