"""An OpenAI-compatible endpoint, asked through the `openai` package.

The key is read from OPENAI_API_KEY and given to the client alone: no message from here holds it, whatever the endpoint
says. The client itself tries again after 408, 409, 429, 5xx and lost connections, after as long as Retry-After says (a
minute or two at most).
"""

import importlib.util
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from chatsmith.errors import ConfigError, EndpointError
from chatsmith.text import one_line

FIRST_TRIES, LATER_TRIES = 3, 9  # a wrong address is known soon; one that has answered is worth half a minute
FILTERED = ("content_filter", "content_policy_violation", "invalid_prompt")  # codes of OpenAI and Azure
LONGEST_QUOTE = 300  # characters of what the endpoint says


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
        from openai import AsyncOpenAI

        self.host = _host(url)
        self.model, self.max_tokens = model, max_tokens
        self._temperature = temperature
        self._limit = "max_tokens"
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not self._key.isascii() or any(c <= " " for c in self._key):
            raise ConfigError("OPENAI_API_KEY holds a blank, a line break or a letter that no key has. Set it again.")
        self._reached = False
        self._client = AsyncOpenAI(base_url=url, api_key=self._key or "none")

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
        except ValueError:  # the body is not JSON
            pass
        self._reached = True
        return self._read(completion)

    async def close(self) -> None:
        await self._client.close()

    def _read(self, completion: Any) -> Reply:
        """What a completion says; the client takes any JSON for one."""
        try:
            choice = completion.choices[0]
            text = choice.message.refusal or choice.message.content or ""
            reason = "content_filter" if choice.message.refusal else choice.finish_reason or "stop"
        except (AttributeError, IndexError, TypeError):
            text, reason = "", "malformed"
        if not isinstance(text, str) or not isinstance(reason, str):
            text, reason = "", "malformed"
        model, usage = getattr(completion, "model", None), getattr(completion, "usage", None)
        counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        tokens_in, tokens_out = (count if isinstance(count, int) else None for count in counts)
        return self._reply(text, reason, model if isinstance(model, str) else self.model, tokens_in, tokens_out)

    def _reply(
        self, text: str, reason: str, model: str, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> Reply:
        date = datetime.now(UTC).isoformat(timespec="seconds")
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
        text = text.replace(self._key, "[the key]") if self._key else text  # some repeat what they were sent
        return one_line(text)[:LONGEST_QUOTE]


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
