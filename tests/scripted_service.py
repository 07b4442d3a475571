"""A reward service on loopback that says what a test wants."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """Inside the context a service at `url`; `say` gives body, status and headers for a batch, or None to hang up."""

    def __init__(self, say: Callable[[list], tuple | None]) -> None:
        self.say, self.batches, self.headers = say, [], []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                batch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.batches.append(batch)
                served.headers.append(dict(self.headers))
                said = ([],) if not batch else served.say(batch)
                if said is None:
                    self.connection.close()
                    return
                value, status, headers = (*said, *(200, {})[len(said) - 1 :])
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(status)
                    for name, text in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/score"

    def __enter__(self) -> "Served":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
