"""A reward at an address: `http://...` or `https://...`. Tests of code, judges, and whatever else is your own.

It is sent a batch as JSON, a list with an object for each answer (`messages`, `answer`, `finish_reason`, `fields`),
and replies with a list of as many numbers; null leaves an answer out of training. An empty list comes at the start and
wants an empty one. Replies are bounded in length and time, redirects are not followed.
"""

import asyncio
import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from chatsmith.errors import ConfigError, RewardError
from chatsmith.files.replies import LONGEST_QUOTE, RefusedReply, guarded
from chatsmith.rewards.judged import Judged
from chatsmith.screen.text import one_line
from chatsmith.types import Sample

KEY = "CHATSMITH_REWARD_KEY"  # in the environment; goes into the header Authorization
LONGEST_REPLY = 16 << 20  # bytes
SECONDS = 300.0  # for the reply to a batch
TRIES, PAUSE_S = 3, 0.5  # the pause doubles
BUSY = (408, 429)  # beside 5xx


class Away(Exception):
    """The service cannot be reached, does not reply in time, or is out of order, in words that follow its name."""


class Service:
    """
    Raises:
        ConfigError: if the address or the key cannot be one.
        RewardError: if it does not answer an empty batch.
    """

    def __init__(self, url: str) -> None:
        self.host = _host(url)
        self._url = url
        key = os.environ.get(KEY, "")
        if not key.isascii() or any(c <= " " for c in key):
            raise ConfigError(f"{KEY} holds a blank, a line break or a letter that no key has. Set it again.")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            self._values([])
        except Away as error:
            raise RewardError(f"reward at {self.host}: {error}. Start it, or mend the address.") from None

    def __call__(self, samples: Sequence[Sample]) -> list[Judged]:
        """
        Raises:
            RewardError: if it refuses, or replies with anything but a number or null for each.
        """
        try:
            values = self._values(samples)
        except Away as error:
            return [f"{self.host} {error}"] * len(samples)
        return [f"{self.host} gives no number" if value is None else value for value in values]

    def _values(self, samples: Sequence[Sample]) -> list[float | None]:
        body = json.dumps([_as_json(sample) for sample in samples]).encode()
        # a loop of its own in a thread of its own: the caller may be in one already, in a notebook for instance
        with ThreadPoolExecutor(1) as thread:
            status, said = thread.submit(asyncio.run, self._asked(body)).result()
        shown = one_line(said[: 4 * LONGEST_QUOTE].decode("utf-8", "replace"))[:LONGEST_QUOTE]
        if status != 200:
            raise RewardError(f"reward at {self.host}: refuses the batch ({status}): {shown!r}. Look at its log.")
        try:
            values = json.loads(said)
        except (ValueError, RecursionError):
            values = None
        if (
            not isinstance(values, list)
            or len(values) != len(samples)
            or not all(value is None or isinstance(value, int | float) for value in values)
        ):
            raise RewardError(
                f"reward at {self.host}: replies to {len(samples)} answers with {shown!r}, not with a JSON list of as "
                "many numbers or nulls. Mend it."
            )
        return [None if value is None else float(value) for value in values]

    async def _asked(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of its reply, asked again where that may help."""
        http = _httpx()
        client = guarded(http.AsyncClient, option="--reward", longest=LONGEST_REPLY, seconds=SECONDS)
        client.timeout = http.Timeout(SECONDS)
        async with client:
            for attempt in range(TRIES):
                try:
                    reply = await client.post(self._url, content=body, headers=self._headers)
                    if reply.status_code not in BUSY and reply.status_code < 500:
                        return reply.status_code, reply.content
                    away = f"does not serve the batch ({reply.status_code})"
                except (TimeoutError, http.TimeoutException):
                    raise Away(f"did not end its reply within {SECONDS:g} s") from None
                except RefusedReply as error:
                    raise RewardError(f"reward at {self.host}: {error.what}. {error.remedy}.") from None
                except http.HTTPError as error:
                    away = f"cannot be reached: {one_line(str(error) or type(error).__name__)[:LONGEST_QUOTE]}"
                if attempt + 1 < TRIES:
                    await asyncio.sleep(PAUSE_S * 2**attempt)
        raise Away(away)


def _as_json(sample: Sample) -> dict[str, Any]:
    return {
        "messages": [{"role": turn.role, "content": turn.content} for turn in sample.messages],
        "answer": sample.answer,
        "finish_reason": sample.finish_reason,
        "fields": dict(sample.record.fields),
    }


def _httpx() -> Any:
    """The client that huggingface_hub brings, by the name that it has there."""
    for name in ("httpx2", "httpx"):
        if importlib.util.find_spec(name) is not None:
            return import_module(name)
    raise ConfigError("reward at an address: neither httpx2 nor httpx is installed. Type pip install httpx2.")


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"reward {url!r} is no address. Write one such as http://localhost:8000/score.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"the reward at {parts.hostname} holds more than an address: a user, a password or a query. Leave it out; "
            f"a key is read from {KEY}."
        )
    return parts.netloc
