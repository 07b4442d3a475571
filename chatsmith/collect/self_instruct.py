"""Self-Instruct (Wang et al. 2022, arXiv:2212.10560): a model writes new instructions after a few examples, and answers
them.

A collection is a function of its settings and of the endpoint's replies. Every reply goes into a journal beside the
output the moment it arrives; to go on after an interruption is to begin anew with the replies that are there. Requests
run side by side, yet replies are looked at in the order of the requests: neither time nor `parallel` changes a record.
"""

import asyncio
import itertools
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from chatsmith.collect import wording
from chatsmith.collect.endpoint import Endpoint, Reply
from chatsmith.collect.filters import Known, Language, language, unfit_answer, unfit_instruction
from chatsmith.collect.journal import Ledger
from chatsmith.collect.tally import Progress, Tally
from chatsmith.data.sources import Source, read_source
from chatsmith.data.spec import STAGES, Spec
from chatsmith.errors import ChatsmithError, DataError, EndpointError
from chatsmith.runs.runtime import StopSignals
from chatsmith.screen.console import Screen
from chatsmith.seeds import derive_seed

SEEDS_SHOWN, KEPT_SHOWN = 6, 2  # examples in a request, as in the paper
# Rounds of 1, 2, 3, ... and then always 8 requests for instructions: a small collection pays for few that it does not
# use, and the size of a round does not depend on the number that is wanted, which may grow later.
LARGEST_ROUND = 8
IDLE_ROUNDS = 3  # without a record: the model cannot do it, or has nothing more to say
TEMPLATE_TOKENS = 64  # at most that many are put around a message
SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class _Candidate:
    """A new instruction, named after its request and its place in the list, and the examples that it was made from."""

    name: str
    instruction: str
    examples: Mapping[str, list[int]]


class _Ended(Exception):
    """No further request is to be made: the user or the budget says so."""


def self_instruct(
    seeds: Path, output: Path, endpoint: Endpoint, tally: Tally, *, parallel: int, seed: int, screen: Screen
) -> int:
    """Collect until `output` holds as many records as `tally` wants; returns the exit code.

    Raises:
        DataError: if the seeds cannot be read.
        EndpointError: if the endpoint fails, or nothing that it says can be kept.
        RunError: if the files of an earlier command do not belong to this one, or cannot be written.
    """
    source, texts, spoken = read_seeds(seeds)
    settings = {"seeds": source.sha256, "seed": seed, "model": endpoint.model}
    screen.line(f"{tally.wanted} {spoken} records by {endpoint.model} at {endpoint.host}, {len(texts)} seeds", "bold")
    if source.licence:
        screen.line(f"  licence of the seeds: {source.licence}")
    ended, warn = "", lambda text: screen.line(f"  warning: {text}", "yellow")
    with closing(Ledger(output, settings, warn)) as ledger, StopSignals() as stop:
        if ledger:
            screen.line(f"  going on: {len(ledger)} records are there")
        try:
            progress = Progress(screen, tally, lambda: stop.received is not None)
            with progress.shown():
                collection = _Collection(endpoint, texts, spoken, ledger, tally, progress, stop, parallel, seed)
                asyncio.run(collection.run())
        except _Ended as reason:
            ended = str(reason)
        finally:
            mark, style = ("✓", "green") if tally.kept == tally.wanted else ("■", "yellow")
            screen.line(f"  {mark} {tally.kept} of {tally.wanted} records in {output}", style)
            for line in tally.lines():
                screen.line(f"    {line}")
    if ended:
        screen.line(f"  {ended}; the same command goes on.", "yellow")
        return 0 if stop.received is None else 128 + stop.received
    screen.command("chatsmith", STAGES[0], "--actor-model", "MODEL", "--data", output)
    return 0


def read_seeds(path: Path) -> tuple[Source, list[str], Language]:
    """The instructions of a file, which are the first user turns of its records, and their language.

    Raises:
        DataError: if a record is bad or holds no instruction, or the language is neither of the two.
    """
    if not path.exists():
        raise DataError(f'--seeds: there is no file "{path}". Check the name.')
    source = read_source(Spec((), str(path), None), on_error="skip", split_seed=0)
    if source.dropped:
        first = source.dropped[0]
        raise DataError(f"{first.origin}: {first.reason}. Mend it; of the seeds {len(source.dropped)} cannot be read.")
    texts = []
    for record in source.records:
        texts += [turn.content.strip() for turn in record.prompt if turn.role == "user"][:1]
    if len(texts) < len(source.records):
        raise DataError(f"{path}: {len(source.records) - len(texts)} records are plain text without an instruction.")
    spoken = Counter(map(language, texts)).most_common(1)[0][0]
    if spoken is None:
        raise DataError(
            f"{path}: most seeds are neither English nor Chinese by their letters. Others cannot be asked for."
        )
    return source, texts, spoken


@dataclass
class _Collection:
    """One command's work on a collection."""

    endpoint: Endpoint
    seeds: Sequence[str]
    language: Language
    ledger: Ledger
    tally: Tally
    progress: Progress
    stop: StopSignals
    parallel: int
    seed: int

    def __post_init__(self) -> None:
        self._known = Known(self.seeds)
        self._earlier = self.ledger.instructions()
        self._kept: list[str] = []
        self._asked = 0  # requests for instructions
        self._fresh = 0  # replies of this command
        self._room, self._turn = asyncio.Semaphore(self.parallel), asyncio.Lock()
        self._under_way: dict[str, float] = {}  # what each request can cost at most, in US dollars
        self._over_budget = False
        self._failure: ChatsmithError | None = None
        for reply in self.ledger.replies.values():
            self.tally.add(reply)

    async def run(self) -> None:
        """Collect until there are records enough."""
        try:
            await self._rounds()
        finally:
            await self.endpoint.close()

    async def _rounds(self) -> None:
        """Requests for instructions, each time with the answers."""
        idle, sizes = 0, itertools.chain(range(1, LARGEST_ROUND), itertools.repeat(LARGEST_ROUND))
        while self.tally.kept < self.tally.wanted:
            kept, fresh = self.tally.kept, self._fresh
            await self._answer(await self._new_instructions(next(sizes)))
            idle = 0 if self.tally.kept > kept or self._fresh == fresh else idle + 1
            if idle == IDLE_ROUNDS:
                raise EndpointError(
                    f"{IDLE_ROUNDS} rounds of requests in a row gave no record. Look at what was dropped, and in "
                    f"{self.ledger.journal} at what the model says; try another model, more seeds, a higher "
                    "--max-tokens or --temperature."
                )

    async def _new_instructions(self, requests: int) -> list[_Candidate]:
        """What is fit and new of the instructions that so many requests bring."""
        contents, shown = {}, {}
        for name in map(str, range(self._asked, self._asked + requests)):
            draw = random.Random(derive_seed("self-instruct", self.seed, name))
            seeds = draw.sample(range(len(self.seeds)), min(SEEDS_SHOWN, len(self.seeds)))
            kept = draw.sample(range(len(self._kept)), min(KEPT_SHOWN, len(self._kept)))
            examples = [self.seeds[i] for i in seeds] + [self._kept[i] for i in kept]
            draw.shuffle(examples)
            contents[name] = wording.request(examples, self.language)
            shown[name] = {"seeds": seeds, "kept": kept}
        self._asked += requests
        candidates = []

        def take(name: str, reply: Reply) -> None:
            instructions = wording.read_list(reply.text)
            if instructions is None:
                self.tally.dropped["malformed list"] += 1
                return
            for place, instruction in enumerate(map(self.endpoint.without_key, instructions)):
                self.tally.tried += 1
                reason = unfit_instruction(instruction, self.language)
                # what an earlier command kept was new then, and needs no search among tens of thousands
                if not reason and instruction not in self._earlier and self._known.nearest(instruction):
                    reason = "near-duplicate"
                if reason:
                    self.tally.dropped[reason] += 1
                    continue
                self._earlier.discard(instruction)
                self._known.add(instruction)
                candidates.append(_Candidate(f"{name}.{place}", instruction, shown[name]))

        await self._ask(contents, take)
        return candidates

    async def _answer(self, candidates: Sequence[_Candidate]) -> None:
        """Ask for the answers, and keep records until there are enough."""
        left = {candidate.name: candidate for candidate in candidates}

        def take(name: str, reply: Reply) -> None:
            if reason := unfit_answer(reply):
                self.tally.dropped[reason] += 1
            else:
                self._keep(left[name], reply)
            del left[name]

        while left and (missing := self.tally.wanted - self.tally.kept):
            batch = itertools.islice(left.values(), missing)
            await self._ask({candidate.name: candidate.instruction for candidate in batch}, take)

    def _keep(self, candidate: _Candidate, reply: Reply) -> None:
        record = {
            "instruction": candidate.instruction,
            "output": reply.text.strip(),
            "provenance": {
                "method": "self-instruct",
                "endpoint": reply.endpoint,
                "model": reply.model,
                "date": reply.date,
                "temperature": reply.temperature,
                **candidate.examples,
                "usage": {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens},
            },
        }
        self.ledger.keep(self.tally.kept, record)
        self._kept.append(candidate.instruction)
        self.tally.kept += 1

    async def _ask(self, contents: Mapping[str, str], take: Callable[[str, Reply], None]) -> None:
        """Give `take` the replies in the order of the requests, those of earlier commands from the journal.

        Raises:
            _Ended: if a request was not made.
            ChatsmithError: if one failed. Before either, what was under way has come into the journal.
        """
        there = self.ledger.replies
        fresh = {name: contents[name] for name in contents if name not in there}
        tasks = {name: asyncio.create_task(self._reply(name, content)) for name, content in fresh.items()}
        try:
            for name in contents:
                reply = there[name] if name in there else await tasks[name]
                if reply is None:
                    raise self._failure or _Ended(self._why())
                take(name, reply)
                self.progress.update()
        except ChatsmithError as error:
            self._failure = error  # so that nothing more is asked
            raise
        finally:
            await asyncio.gather(*tasks.values())

    async def _reply(self, name: str, content: str) -> Reply | None:
        """None if the request failed, or was not made at all."""
        async with self._room:
            # no tokenizer makes more tokens of a text than it has bytes
            most = self.tally.cost(len(content.encode()) + TEMPLATE_TOKENS, self.endpoint.max_tokens)
            async with self._turn:
                while self._under_way and self._exceeds(most):  # what is under way may cost less than it can
                    await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            self._over_budget |= self._exceeds(most)
            if self._over_budget or self._failure or self.stop.received is not None:
                return None
            self.progress.begin()
            self._under_way[name] = most
            try:
                reply = await self.endpoint.ask(content)
                self.ledger.note(name, reply)
            except ChatsmithError as error:
                self._failure = self._failure or error
                return None
            finally:
                del self._under_way[name]
        self.tally.add(reply)
        self._fresh += 1
        if (
            reply.input_tokens is None
            and reply.finish_reason not in ("malformed", "content_filter")
            and self.tally.budget is not None
        ):
            self._failure = EndpointError(
                f"{self.endpoint.host} does not count tokens, so --budget cannot be kept. Leave --budget out."
            )
        return reply

    def _exceeds(self, cost: float) -> bool:
        """Whether so much more could pass the budget."""
        budget = self.tally.budget
        return budget is not None and self.tally.spent + sum(self._under_way.values()) + cost > budget

    def _why(self) -> str:
        if self.stop.received is not None:
            return f"interrupted by {signal.Signals(self.stop.received).name}"
        return f"the next request could pass the budget of ${self.tally.budget:.2f}: raise --budget"
