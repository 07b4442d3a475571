"""An OpenAI-compatible endpoint, asked through the `openai` package.

The key is read from OPENAI_API_KEY and given to the client alone: nothing that comes from here holds it, whatever the
endpoint says, and it is sent to no other address. What the endpoint says is bounded in length and time. The client
itself tries again after 408, 409, 429, 5xx and lost connections, after as long as Retry-After says (a minute or two at
most).
"""

import base64
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from chatsmith.errors import ConfigError, EndpointError
from chatsmith.files.replies import LONGEST_QUOTE, RefusedReply, guarded
from chatsmith.screen.text import one_line

FIRST_TRIES, LATER_TRIES = 3, 9  # a wrong address is known soon; one that has answered is worth half a minute
FILTERED = ("content_filter", "content_policy_violation", "invalid_prompt")  # codes of OpenAI and Azure
LONGEST_BODY = 16 << 20  # bytes; far more than the longest answer with everything around it
LONGEST_WAIT_S = 900.0  # for a whole reply; the client waits ten minutes for its beginning
LONGEST_TOKEN = 16  # bytes; longer ones are runs of one character, and none is so long on average
MOST_TOKENS = 10**9  # of a text
SHORTEST_KEY = 8  # shorter ones, such as "none", are words


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    `finish_reason` is the endpoint's own word, or "malformed" where its reply is no chat completion; the tokens are
    None where it counts none.
    """

    text: str
    finish_reason: str
    model: str
    endpoint: str
    temperature: float
    date: str
    input_tokens: int | None
    output_tokens: int | None


class Endpoint:
    """A model at an endpoint.

    Raises:
        ConfigError: if a package is missing, or the address or the key cannot be one.
    """

    def __init__(self, url: str, model: str, *, temperature: float, max_tokens: int) -> None:
        for package in ("openai", "rapidfuzz"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"collect: the package {package} is not installed. Type pip install 'chatsmith[collect]'."
                )
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self.host = _host(url)
        self.model, self.max_tokens = model, max_tokens
        self._temperature = temperature
        self._limit = "max_tokens"
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not self._key.isascii() or any(c <= " " for c in self._key):
            raise ConfigError("OPENAI_API_KEY holds a blank, a line break or a letter that no key has. Set it again.")
        self._reached = False
        self._spelt = _spellings(self._key) if len(self._key) >= SHORTEST_KEY else None
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=self._key or "none",
            http_client=guarded(
                DefaultAsyncHttpxClient, option="--endpoint", longest=LONGEST_BODY, seconds=LONGEST_WAIT_S
            ),
        )

    async def ask(self, content: str) -> Reply:
        """The reply to one user message.

        Raises:
            EndpointError: if the endpoint cannot be reached or refuses.
        """
        import openai

        limit, tries = self._limit, LATER_TRIES if self._reached else FIRST_TRIES
        completion: Any = None
        try:
            completion = await self._client.with_options(max_retries=tries - 1).chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=self._temperature,
                extra_body={limit: self.max_tokens},
            )
        except openai.APIError as error:
            if limit == "max_tokens" and "max_completion_tokens" in error.message:  # OpenAI's reasoning models say so
                self._limit = "max_completion_tokens"
                return await self.ask(content)
            if error.code in FILTERED:
                return self._reply("", "content_filter", self.model)
            raise self._explained(error) from None  # without the request, which holds the key
        except TimeoutError:
            raise EndpointError(
                f"{self.host} did not end its reply within {LONGEST_WAIT_S:.0f} s. Look at its log; lower --parallel "
                "or --max-tokens; the same command then goes on."
            ) from None
        except RefusedReply as error:
            said = f"{self.host} {error.what}. {error.remedy}; the same command then goes on."
            raise EndpointError(self.without_key(said)) from None
        except (ValueError, TypeError, AttributeError, RecursionError):  # the body is not JSON, or not of that form
            pass
        self._reached = True
        return self._read(completion, content)

    async def close(self) -> None:
        await self._client.close()

    def without_key(self, text: str) -> str:
        """The text with the key replaced: some repeat what they were sent, escaped or broken into pieces."""
        return self._spelt.sub("[the key]", text) if self._spelt is not None else text

    def _read(self, completion: Any, content: str) -> Reply:
        """What a completion says; the client takes any JSON for one."""
        try:
            choice = completion.choices[0]
            text = choice.message.refusal or choice.message.content or ""
            reason = "content_filter" if choice.message.refusal else choice.finish_reason or "stop"
        except (AttributeError, IndexError, KeyError, TypeError):
            text, reason = "", "malformed"
        if not isinstance(text, str) or not isinstance(reason, str):
            text, reason = "", "malformed"
        model, usage = getattr(completion, "model", None), getattr(completion, "usage", None)
        tokens_in = _counted(getattr(usage, "prompt_tokens", None), content)
        tokens_out = _counted(getattr(usage, "completion_tokens", None), text)
        if tokens_in is None or tokens_out is None:
            tokens_in = tokens_out = None
        return self._reply(text, reason, model if isinstance(model, str) else self.model, tokens_in, tokens_out)

    def _reply(
        self, text: str, reason: str, model: str, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> Reply:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        text, reason, model = map(self.without_key, (text, reason, model))
        return Reply(text, reason, model, self.host, self._temperature, date, input_tokens, output_tokens)

    def _explained(self, error: Any) -> EndpointError:
        import openai

        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        quoted = self._clean(f"{said or error.message}{_asked_wait(error)}")
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                key = "the key in OPENAI_API_KEY" if self._key else "a request without a key"
                what, remedy = f"refuses {key} ({error.status_code})", "Set OPENAI_API_KEY to a valid one"
            case openai.NotFoundError():
                what = f'knows no model "{self.model}", or not this path (404): {quoted}'
                remedy = "Check --model, and --endpoint, which often ends in /v1"
            case openai.RateLimitError():
                what = f"takes no more requests (429): {quoted}"
                remedy = "Wait, lower --parallel, or see to the account's limits"
            case openai.APIStatusError():
                what = f"does not serve the request ({error.status_code}): {quoted}"
                remedy = "Change what it names, or look at its log"
            case openai.APITimeoutError():
                what, remedy = "did not answer in time", "Look at its log; lower --parallel or --max-tokens"
            case _:
                what, remedy = f"cannot be reached: {self._clean(_root(error))}", "Check --endpoint, and its server"
        return EndpointError(f"{self.host} {what.rstrip('. ')}. {remedy}; the same command then goes on.")

    def _clean(self, text: str) -> str:
        text = self.without_key(text[: 1000 * LONGEST_QUOTE])
        text = text.replace(self._key, "[the key]") if self._key else text
        return one_line(text)[:LONGEST_QUOTE]


def _counted(count: object, text: str) -> int | None:
    """An endpoint's count of a text's tokens, or ours where it says fewer than there can be; None for no count."""
    if type(count) is not int or not 0 <= count <= MOST_TOKENS:
        return None
    letters = " ".join(text.split())
    return max(count, -(-len(letters.encode("utf-8", "replace")) // LONGEST_TOKEN))


def _spellings(key: str) -> re.Pattern[str]:
    """A key as it stands, in other case, with what is no letter between its characters, escaped as in JSON, an address
    or a page, or in base64."""
    written = [
        rf"(?:{re.escape(c)}|\\*(?:u00|x){ord(c):02x}|%{ord(c):02x}|&\#x0*{ord(c):x};|&\#0*{ord(c)};)" for c in key
    ]
    between = rf"(?:(?![{re.escape(key)}\\%&])[\W_]){{0,8}}+"
    return re.compile("|".join([between.join(written), *map(re.escape, _in_base64(key))]), re.IGNORECASE)


def _in_base64(key: str) -> Iterator[str]:
    """What a key is in base64 in the midst of other bytes, wherever it begins in a group of three."""
    for before in range(3):
        data = b"-" * before + key.encode()
        whole = slice(-(-before * 8 // 6), len(data) * 8 // 6)  # the others depend on what stands beside it
        yield base64.b64encode(data).decode()[whole]
        yield base64.urlsafe_b64encode(data).decode()[whole]


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError("--endpoint is no address. Write one such as http://localhost:8000/v1.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "--endpoint holds more than an address: a user, a password or a query. Leave it out; a key is read from "
            "OPENAI_API_KEY."
        )
    return parts.netloc


def _asked_wait(error: Any) -> str:
    response = getattr(error, "response", None)
    wait = response.headers.get("retry-after") if response is not None else None
    return f"; it asks to wait {wait} s" if wait else ""


def _root(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
