"""An OpenAI-compatible endpoint on loopback that says what a test wants: a real HTTP server for the real client."""

import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Said:
    """A completion; `usage` None leaves its count of tokens out."""

    text: str
    finish_reason: str = "stop"
    usage: tuple[int, int] | None = (100, 50)
    model: str = "scripted-2"


@dataclass(frozen=True)
class Failure:
    """Anything else: a status and a body."""

    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def asks_for_instructions(content: str) -> bool:
    return "JSON" in content


def writer(content: str, number: int) -> Said:
    """Ten new instructions, or an answer: always the same to the same content, whenever it is asked."""
    if not asks_for_instructions(content):
        return Said(f"This is the answer to: {content}")
    draw = random.Random(hashlib.sha256(content.encode()).hexdigest())
    if "请" in content:
        return Said(
            json.dumps(["请解释" + "".join(chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(9)) for _ in range(10)])
        )
    words = ["".join(draw.choices(LETTERS, k=7)) for _ in range(80)]
    return Said(json.dumps([f"Explain {' '.join(words[i : i + 8])}." for i in range(0, 80, 8)]))


class ScriptedEndpoint:
    """Inside the context it serves at `url`. `say(content, number)` answers request `number`, from 0.

    `requests` are the bodies that came, `most_together` how many were under way at once.
    """

    def __init__(
        self, say: Callable[[str, int], Said | Failure] = writer, delay_s: Callable[[int], float] | None = None
    ):
        self.say, self.delay_s = say, delay_s
        self.requests: list[dict] = []
        self.authorization: set[str | None] = set()
        self.under_way = self.most_together = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/v1"

    def __enter__(self) -> "ScriptedEndpoint":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, *, for_instructions: bool) -> list[str]:
        contents = [body["messages"][0]["content"] for body in self.requests]
        return [content for content in contents if asks_for_instructions(content) == for_instructions]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.authorization.add(handler.headers["Authorization"])
            self.under_way += 1
            self.most_together = max(self.most_together, self.under_way)
        if self.delay_s is not None:
            time.sleep(self.delay_s(number))
        said = self.say(body["messages"][0]["content"], number)
        with self._lock:
            self.under_way -= 1
        if isinstance(said, Said):
            said = Failure(200, json.dumps(_completion(said)))
        data = said.body.replace("{authorization}", str(handler.headers["Authorization"])).encode()
        try:
            handler.send_response(said.status)
            for name, value in {
                "Content-Type": "application/json",
                **said.headers,
                "Content-Length": str(len(data)),
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            pass


def _completion(said: Said) -> dict:
    message = {"role": "assistant", "content": said.text}
    usage = said.usage and {
        "prompt_tokens": said.usage[0],
        "completion_tokens": said.usage[1],
        "total_tokens": sum(said.usage),
    }
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": said.model,
        "choices": [{"index": 0, "message": message, "finish_reason": said.finish_reason}],
        **({"usage": usage} if usage else {}),
    }
