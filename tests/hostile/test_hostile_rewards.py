"""Answers, rows, packages and services that mean harm or are broken: nothing hangs, and nothing is 0 by accident."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from instructions import CASES

from chatsmith.config import RlConfig
from chatsmith.errors import ConfigError, RewardError
from chatsmith.rewards import form, mathematics, numbers, service, shape
from chatsmith.rewards.constraints import CHECKS
from chatsmith.rewards.ready import ready
from chatsmith.rewards.worker import Failed, Killed, Worker
from chatsmith.stages.rl import load_reward
from chatsmith.stages.rollout import judge
from chatsmith.types import Message, Record, Sample

FAST_S = 2.0  # for what must not take long: far more than it takes, far less than without a bound


def sample(said: str, /, **fields) -> Sample:
    return Sample((Message("user", "?"),), said, "stop", Record(fields=fields), 1)


# a process of its own

FUNCTION = """
import os, sys, time
def f(what):
    if what == "hang":
        9 ** 9 ** 9 ** 9
    if what == "sleep":
        time.sleep(1000)
    if what == "die":
        os._exit(0)
    if what == "memory":
        bytearray(1 << 45)
    if what == "print":
        print('["value", false]'); sys.stdout.flush(); os.write(1, b"x"); os.write(2, b"x"); sys.stdin.read()
    if what == "raise":
        raise ValueError("\\x1b[31m" + "long " * 1000)
    if what == "exit":
        sys.exit()
    if what == "unkillable":
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1000)
    return True
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    worker = Worker("odd:f", probe=("good",), seconds=0.4)
    yield worker
    worker.close()


@pytest.mark.parametrize("what", ["hang", "sleep", "die", "memory", "exit", "unkillable"])
def test_what_hangs_dies_or_eats_memory_costs_one_call(worker, what):
    assert worker.ask("good") is True
    start = time.monotonic()
    with pytest.raises(Killed):
        worker.ask(what)
    assert time.monotonic() - start < FAST_S
    assert worker.ask("good") is True


def test_what_prints_or_reads_reaches_nobody_and_what_raises_is_told(worker, capfd):
    assert worker.ask("print") is True
    with pytest.raises(Failed, match="ValueError") as error:
        worker.ask("raise")
    assert len(str(error.value)) <= 300
    assert worker.ask("good") is True
    assert capfd.readouterr() == ("", "")


def test_a_file_in_the_working_directory_takes_no_modules_place_in_the_worker(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert Worker("chatsmith.rewards.form:matches", probe=("a", "a"), seconds=5).ask("a", "b") is False


def test_a_worker_ends_with_the_one_who_asks_even_where_it_hangs(tmp_path):
    (tmp_path / "odd.py").write_text(FUNCTION)
    code = (
        "import os, sys, threading, time\n"
        "from chatsmith.rewards.worker import Worker\n"
        "worker = Worker('odd:f', probe=('good',), seconds=0.4)\n"
        "assert worker.ask('good')\n"
        "print(worker._process.pid, flush=True)\n"
        "threading.Thread(target=worker.ask, args=('hang',), daemon=True).start()\n"
        "time.sleep(0.1)\n"
        "os._exit(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    pid = int(said.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker outlived the one who asked")


# math


def stub(tmp_path, monkeypatch, body: str) -> None:
    (tmp_path / "math_verify.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: object())


PARSES = "def parse(text, **options):\n    return [text]\n"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise OSError('no such library')\n", "OSError: no such library"),
        ("def parse(text, **options):\n    raise ValueError('signal only works in main thread')\n", "main thread"),
        ("def parse(text):\n    return [text]\n", "unexpected keyword"),
        (PARSES + "def verify(*_, **__):\n    return False\n", "False"),
        ("def parse(text, **options):\n    return []\n", "False"),
        ("import os\nos._exit(1)\n", "Killed"),
    ],
)
def test_a_verifier_that_is_broken_stops_the_run_and_never_gives_0_to_all(tmp_path, monkeypatch, body, says):
    stub(tmp_path, monkeypatch, body)
    with pytest.raises(RewardError, match=f"does not work in a process of its own: it says .*{says}"):
        judge([sample("72", answer="72")], [load_reward("math")], RlConfig())


def test_without_math_verify_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'chatsmith\[math\]'"):
        load_reward("math")


def test_of_many_answers_that_hang_some_cost_time_and_the_others_are_left_out(tmp_path, monkeypatch):
    hangs = "import time\ndef parse(text, **_):\n    return text if text != 'hang' else time.sleep(1000)\n"
    stub(tmp_path, monkeypatch, hangs + "def verify(gold, said, **_):\n    return True\n")
    monkeypatch.setattr(mathematics, "SECONDS", 0.2)
    monkeypatch.setattr(mathematics, "MOST_KILLED", 3)
    reward = ready("math", limit=1)
    start = time.monotonic()
    values = reward([sample("good", answer="1"), *[sample("hang", answer="1")] * 50])
    assert time.monotonic() - start < 5 * FAST_S
    assert values == [1.0, 0.0, 0.0, 0.0, *[None] * 47]
    assert reward.reasons == {mathematics.STOPPED: 47}


@pytest.fixture
def verify(monkeypatch):
    pytest.importorskip("math_verify")
    monkeypatch.setattr(mathematics, "SECONDS", 1.5)
    return ready("math", limit=1)


def test_math_takes_what_is_the_same_and_nothing_else(verify):
    for gold, right, wrong in [
        ("72", ["72", "#### 72", "$72$", "So \\boxed{72}."], ["73", "72, 73 or 74", "\\boxed{72}\\boxed{73}", ""]),
        ("#### 1,000", ["1000", "$1000.0$"], ["1"]),
        ("$\\frac{1}{2}$", [".5", "$\\frac12$", "1/2"], ["2", "$\\frac{2}{1}$"]),
        ("So \\boxed{(x+1)^2}", ["$x^2+2x+1$"], ["$x^2+1$"]),
        ("(1,2)", ["$(1, 2)$"], ["$(2,1)$"]),
        ("[0,1)", ["$[0,1)$"], ["$[0,1]$"]),
        ("\\text{Monday}", ["\\boxed{Monday}"], ["Monday or so", "\\boxed{Tuesday}"]),
    ]:
        values = verify([sample(answer, answer=gold) for answer in (*right, *wrong)])
        assert values == [1.0] * len(right) + [0.0] * len(wrong), gold


def test_a_gold_answer_that_cannot_be_read_is_the_datas_fault(verify):
    golds = ["\\frac{", "The answer is 5", "}{", "{" * 3000, ""]
    assert verify([sample("5", answer=gold) for gold in golds]) == [None] * 5
    assert verify.reasons == {mathematics.UNREADABLE: 4, mathematics.MISSING: 1}


def test_hostile_latex_costs_one_answer_each(verify):
    hostile = [
        "$9^{9^{9^9}}$",
        "$(10^{10})!$",
        "$" + "\\frac{1}{" * 3000,
        "\\boxed{" * 3000,
        "1" * 10**6,
        "\udc00 \x00",
    ]
    values = verify([sample(answer, answer="72") for answer in ("72", *hostile, "72")])
    assert values == [1.0, *[0.0] * len(hostile), 1.0]


# what answers and rows can do to the others


def test_a_regular_expression_without_end_costs_its_row_and_only_once(monkeypatch):
    monkeypatch.setattr(form, "SECONDS", 0.4)
    reward = ready("format", limit=1)
    endless = sample("a" * 60, regex="(a+)+b")
    start = time.monotonic()
    assert reward([sample("ab", regex="a."), *[endless] * 40, sample("ab", regex="a.")]) == [1.0, *[None] * 40, 1.0]
    assert reward.reasons == {form.ENDLESS: 40}
    assert reward([endless] * 9) == [None] * 9
    assert time.monotonic() - start < 2 * FAST_S


def test_what_is_no_regular_expression_is_the_datas_fault():
    reward = ready("format", limit=1)
    rows = [sample("a", regex=regex) for regex in ("(", 5, ["a"], "a{1000000000000}", "(" * 5000 + ")" * 5000)]
    assert reward(rows) == [None] * 5
    assert [bool(reward.unfit(row.record)) for row in rows] == [True] * 5
    assert reward.unfit(sample("a", regex="(a+)+b").record) == ""


LONG = 30_000  # what takes the square of it takes minutes
HOSTILE = [
    *("1" * LONG, "1," * LONG, "1,111" * LONG, "1/" * LONG, "1." * LONG, "-" * LONG, "." * LONG + "a", " " * LONG),
    *("\n" * LONG, "*" * LONG, "* " * LONG, "[" * LONG, "[a" * LONG, "<" * LONG, "<<a" * LONG, '"' * LONG, "{" * LONG),
    *(
        "\\boxed{" * LONG,
        "####" * LONG,
        "<think>" * LONG,
        "SECTION 1" * LONG,
        "a\n\n" * LONG,
        "P." * LONG,
        "A.b-" * LONG,
    ),
    *("[" * LONG + "]" * LONG, "。" * LONG, "Mr. " * LONG, '."' * LONG, "\\frac{" + "1" * LONG, "```json" * LONG),
]


@pytest.mark.parametrize("answer", HOSTILE, ids=[f"{text[:9]!a}" for text in HOSTILE])
def test_no_answer_takes_long_whatever_is_in_it(answer):
    start = time.monotonic()
    assert numbers.number(sample(answer, answer="72")) in (0.0, 1.0)
    assert not form.thinks_and_answers(answer)
    assert -1 <= shape.repetition(answer) <= 0
    for id, (arguments, *_) in CASES.items():
        one = sample(answer, instruction_id_list=[id], kwargs=[arguments])
        assert ready("constraints", limit=1)([one])[0] in (0.0, 1.0)
    assert set(CASES) == set(CHECKS)
    assert time.monotonic() - start < 2 * FAST_S


# a service


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
                value, status, headers = (*said, 200, {})[:3] if len(said) == 1 else (*said, {})[:3]
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


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(service, "PAUSE_S", 0.01)
    monkeypatch.setattr(service, "SECONDS", 1.0)
    monkeypatch.delenv(service.KEY, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_batch_goes_out_and_numbers_come_back(monkeypatch):
    monkeypatch.setenv(service.KEY, "sk-hidden")
    with Served(lambda batch: ([len(each["answer"]) if each["fields"] else None for each in batch],)) as served:
        reward = load_reward(f"{served.url}@0.5")
        rows = [sample("abc", number=1), sample("ab", number=2)] * 12 + [sample("\udc00")]
        values, valid, metrics = judge(rows, [reward], RlConfig())
    assert values.tolist() == [1.5, 1.0] * 12 + [0.0]
    assert valid.tolist() == [True] * 24 + [False]
    assert served.batches[0] == []
    assert served.batches[1][0] == {
        "messages": [{"role": "user", "content": "?"}],
        "answer": "abc",
        "finish_reason": "stop",
        "fields": {"number": 1},
    }
    assert {headers["Authorization"] for headers in served.headers} == {"Bearer sk-hidden"}
    host = served.url.removeprefix("http://")
    assert metrics[f"reward/{host}_excluded"] == pytest.approx(0.04)


def test_a_service_that_is_away_from_the_start_is_a_clear_error():
    with Served(lambda batch: ([],)) as served:
        pass
    with pytest.raises(RewardError, match=r"reward at 127.0.0.1:\d+: cannot be reached: .* Start it"):
        load_reward(served.url)


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (lambda batch: ([], 503), "does not serve the batch (503)"),
        (lambda batch: ([], 429), "does not serve the batch (429)"),
        (lambda batch: None, "cannot be reached"),
        (lambda batch: time.sleep(1.5) or ([0.0] * len(batch),), "did not end its reply within 1 s"),
        (lambda batch: (b"[1", 200, {"Content-Length": "1000000"}), "reach|end"),
    ],
)
def test_a_service_that_dies_later_gives_none_until_too_many_are_left_out(say, why):
    with Served(say) as served:
        reward = load_reward(served.url)
        start = time.monotonic()
        assert reward.function([sample("a"), sample("b")]) == [None, None]
        assert time.monotonic() - start < 3 * FAST_S
        (reason,) = reward.reasons()
        assert any(part in reason for part in why.split("|")), reason
        with pytest.raises(RewardError, match="gave no finite number to 100%") as error:
            judge([sample("a")], [reward], RlConfig())
        assert reason in str(error.value)


def test_a_service_that_stumbles_is_asked_again():
    said = iter([([], 500), None, ([1.0],)])
    with Served(lambda batch: next(said)) as served:
        assert load_reward(served.url).function([sample("a")]) == [1.0]
        assert len(served.batches) == 4


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (([],), "not with a JSON list of as many numbers or nulls"),
        (([1.0, 2.0],), "not with a JSON list"),
        ((["1.0"],), "not with a JSON list"),
        (({"rewards": [1.0]},), "not with a JSON list"),
        ((b"no JSON \x1b[31m",), "not with a JSON list"),
        ((b"[" * 100_000,), "not with a JSON list"),
        (([], 404), r"refuses the batch \(404\)"),
        (([], 401), r"refuses the batch \(401\)"),
        (([], 302, {"Location": "http://127.0.0.1:1/elsewhere"}), "sends requests on to http://127.0.0.1:1/elsewhere"),
        ((b"x", 200, {"Content-Encoding": "gzip"}), "packs its replies"),
        ((b"[1.0" + b" " * (17 << 20) + b"]",), "says more than 16 MiB"),
    ],
)
def test_a_reply_that_is_none_is_a_clear_error(reply, says):
    with Served(lambda batch: reply) as served:
        reward = load_reward(served.url)
        with pytest.raises(RewardError, match=says) as error:
            judge([sample("a")], [reward], RlConfig())
    assert "\x1b" not in str(error.value)


def test_a_number_that_is_none_leaves_the_answer_out():
    with Served(lambda batch: (b"[NaN, Infinity, 1, true]",)) as served:
        _, valid, _ = judge([sample("a")] * 4, [load_reward(served.url)], RlConfig(max_excluded=0.5))
    assert valid.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://", "is no address"),
        ("http://host:port/", "is no address"),
        ("https://host/score?key=1", "more than an address"),
        ("http://user:word@host/@1", "more than an address"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url, says):
    with pytest.raises(ConfigError, match=says) as error:
        load_reward(url)
    assert "word" not in str(error.value).replace("password", "")


def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated(monkeypatch):
    monkeypatch.setenv(service.KEY, "hidden\nkey")
    with pytest.raises(ConfigError, match=service.KEY) as error:
        load_reward("http://127.0.0.1:1/")
    assert "hidden" not in str(error.value)
