"""An endpoint that means harm: what it says is bounded, costs what it says at least, and never holds the key."""

import base64
import gzip
import itertools
import json
import re
import time

import pytest
from scripted_endpoint import Failure, Said, ScriptedEndpoint, asks_for_instructions, writer

pytest.importorskip("openai")
pytest.importorskip("rapidfuzz")

from chatsmith.collect import endpoint as client
from chatsmith.collect.endpoint import Endpoint, Reply
from chatsmith.collect.filters import unfit_answer, unfit_instruction
from chatsmith.collect.self_instruct import self_instruct
from chatsmith.collect.tally import Tally
from chatsmith.collect.wording import PER_REQUEST, read_list
from chatsmith.data import licences, signs
from chatsmith.data.turns import is_transcript
from chatsmith.errors import ChatsmithError, EndpointError
from chatsmith.screen.console import Screen

KEY = "sk-proj-Zx81_kQ0vN3-hidden"


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Collect from an endpoint; returns the tally."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"instruction": "Name three fruits."}\n{"instruction": "Why is the sky blue?"}\n')

    def run(endpoint, number=4, **tally):
        asked = Endpoint(endpoint.url, "m", temperature=0.5, max_tokens=100)
        tally = Tally(number, tally.get("prices"), tally.get("budget"))
        self_instruct(seeds, tmp_path / "out.jsonl", asked, tally, parallel=2, seed=0, screen=Screen())
        return tally

    return run


# time

LONG = 200_000  # a time that grows faster than the text is minutes here
PATTERNS = {name: value for name, value in {**vars(signs), **vars(licences)}.items() if isinstance(value, re.Pattern)}
PATTERNS |= {f"sign {name}": value for name, value in signs._TEXT_SIGNS.items()}
PATTERNS.pop("_NO_PROSE")  # looks at the beginning of a line alone
PIECES = [
    "\n",
    " ",
    "a",
    "a ",
    "```\n",
    "[",
    "```json\n\n",
    "create ",
    "create a ",
    "i can't ",
    "抱歉，",
    "作为 ",
    "\n ",
    "{",
    "&#",
    "<|a",
    "\t",
]


@pytest.mark.parametrize("opening", ["", "```\n", "```json\n[", "sorry", "as an ", "{{ ", "Human:"])
def test_no_long_text_takes_a_second(opening):
    for piece, ending in itertools.product(PIECES, ("", ".", "\n```")):
        text = opening + piece * (LONG // len(piece)) + ending
        reply = Reply(text, "stop", "m", "h", 1.0, "", 1, 1)
        started = time.process_time()
        read_list(text)
        unfit_answer(reply)
        assert time.process_time() - started < 0.5, (opening, piece, ending)


@pytest.mark.parametrize("piece", [*PIECES, "\n\n", "Human:", "\nHuman: ", "###", "\n\r"])
def test_no_search_in_a_long_text_takes_a_second(piece):
    text = "Explain why" + piece * (LONG // len(piece))
    started = time.process_time()
    is_transcript(text)
    assert time.process_time() - started < 0.5, "transcript"
    for name, sign in PATTERNS.items():
        started = time.process_time()
        sign.search(text)
        assert time.process_time() - started < 0.5, name
    started = time.process_time()
    unfit_instruction("Explain this: create " + " " * LONG + "a" * LONG, "English")
    assert time.process_time() - started < 0.5


def test_a_list_longer_than_was_asked_for_is_none():
    assert read_list(json.dumps(["Do this."] * PER_REQUEST)) is not None
    assert read_list(json.dumps(["Do this."] * 100 * PER_REQUEST)) is None


@pytest.mark.parametrize("items", [[], ["a"], ["a\n```\nb", "```"]])
@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "```\n{}\n```", " ```json  \n\n{}\n\n  ```\n"])
def test_fences_are_read_as_before(items, fence):
    assert read_list(fence.replace("{}", json.dumps(items))) == items


# counts


@pytest.mark.parametrize(
    "usage", [(-(10**6), -(10**6)), (0, 0), (1, -5), (10**400, 1), (10**30, 10**30), (True, True), (1.5, 2), ("9", "9")]
)
def test_no_count_of_tokens_defeats_the_budget(collect, usage):
    def say(content, number):
        text = writer(content, number).text if asks_for_instructions(content) else "word " * 400
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return Failure(200, json.dumps({"choices": [choice], "usage": counts}))

    with ScriptedEndpoint(say) as endpoint:
        try:
            collect(endpoint, 1000, prices=(1000.0, 1000.0), budget=3.0)
        except EndpointError as error:
            assert "does not count tokens" in str(error)
    assert len(endpoint.requests) < 60


def test_a_count_is_never_less_than_what_the_text_holds(collect):
    with ScriptedEndpoint(lambda content, number: Said(writer(content, number).text, usage=(1, 1))) as endpoint:
        tally = collect(endpoint)
    least = sum(len(request["messages"][0]["content"].encode()) for request in endpoint.requests) / 20
    assert tally.input_tokens >= least


# where the key goes


def everything(folder, capsys):
    """All that was printed or written, as it stands and as JSON reads it."""
    output = capsys.readouterr()
    texts = [output.out, output.err]
    for file in folder.rglob("*"):
        if file.is_file():
            texts.append(file.read_text())
            texts += [str(json.loads(line)) for line in file.read_text().splitlines()]
    return "\n".join(texts)


def test_a_redirect_is_not_followed(collect, tmp_path, capsys):
    with ScriptedEndpoint() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            answer = Failure(status, "", {"Location": f"{elsewhere.url}/{KEY}"})
            with ScriptedEndpoint(lambda *_, answer=answer: answer) as endpoint, pytest.raises(EndpointError) as error:
                collect(endpoint)
            assert f"({status})" in str(error.value)
            assert KEY not in str(error.value)
            assert len(endpoint.requests) == 1
        assert not elsewhere.requests
        assert not elsewhere.authorization
    assert KEY not in everything(tmp_path, capsys)


SPELT = {
    "plain": KEY,
    "header": f"Authorization: Bearer {KEY}",
    "escaped": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "half escaped": "".join(f"\\u{ord(c):04X}" if i % 2 else c for i, c in enumerate(KEY)),
    "in an address": "".join(f"%{ord(c):02X}" for c in KEY),
    "in a page": "".join(f"&#{ord(c)};" for c in KEY),
    "with blanks": " ".join(KEY),
    "over lines": "\n".join(KEY),
    "hidden": "\u200b".join(KEY),
    "with dots": ".".join(KEY),
    "in capitals": KEY.upper(),
    **{f"in base64, {n} bytes in": base64.b64encode(b"ab"[:n] + KEY.encode() + b"cd").decode() for n in range(3)},
}


@pytest.mark.parametrize("spelling", SPELT)
def test_the_key_never_comes_into_a_file_or_on_the_screen(collect, tmp_path, capsys, spelling):
    spelt = SPELT[spelling]

    def say(content, number):
        if asks_for_instructions(content):
            words = json.loads(writer(content, number).text)
            listed = [f"{word} {KEY} and {spelt}" for word in words]
            return Said(json.dumps(listed), model=f"m {spelt}")
        return Said(f"Your key is {spelt}.", model=spelt)

    with ScriptedEndpoint(say) as endpoint:
        collect(endpoint, 3)
    found = everything(tmp_path, capsys)
    assert "[the key]" in found
    assert KEY not in found
    assert KEY not in "".join(found.replace("\\n", "").replace("\\u200b", "").split())
    assert spelt not in found
    for status in (400, 401, 404, 422):
        bad = json.dumps({"error": {"message": f"You sent {spelt}", "code": spelt}})
        with ScriptedEndpoint(lambda *_, bad=bad, status=status: Failure(status, bad)) as endpoint:
            (tmp_path / "out.jsonl").unlink(missing_ok=True)
            (tmp_path / "out.jsonl.journal").unlink(missing_ok=True)
            with pytest.raises(EndpointError) as error:
                collect(endpoint)
        assert KEY not in str(error.value)
        assert spelt not in str(error.value)


# length and time


class Endless(ScriptedEndpoint):
    """It begins a reply and never ends it."""

    def __init__(self, piece, pause_s, status=200, headers=()):
        super().__init__()
        self.piece, self.pause_s, self.status, self.headers, self.sent = piece, pause_s, status, headers, 0

    def _serve(self, handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        self.requests.append({})
        handler.send_response(self.status)
        for name, value in self.headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.close_connection = True
        try:
            while self.sent < 1 << 30:
                handler.wfile.write(self.piece)
                self.sent += len(self.piece)
                time.sleep(self.pause_s)
        except OSError:
            pass


@pytest.mark.parametrize("status", [200, 400])
def test_a_reply_without_end_is_given_up(collect, status):
    with Endless(b" " * 65536, 0.0, status) as endpoint, pytest.raises(EndpointError, match="more than 16 MiB"):
        collect(endpoint)
    assert endpoint.sent < 64 << 20


def test_a_reply_that_trickles_is_given_up(collect, monkeypatch):
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 0.5)
    started = time.monotonic()
    with Endless(b" ", 0.05) as endpoint, pytest.raises(EndpointError, match="did not end its reply"):
        collect(endpoint)
    assert time.monotonic() - started < 20


def test_a_bomb_is_not_unpacked(collect):
    bomb = gzip.compress(bytes(32 << 20))
    with (
        Endless(bomb, 60.0, headers=[("Content-Encoding", "gzip"), ("Content-Length", str(len(bomb)))]) as endpoint,
        pytest.raises(EndpointError, match="packs its replies"),
    ):
        collect(endpoint)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        "[]",
        "null",
        "1" * 5000,
        '{"choices": {}}',
        '{"choices": [[]]}',
        '{"choices": [{"message": {"content": {"a": 1}}}], "usage": []}',
        '{"choices": [{"message": {"content": "a", "refusal": ["b"]}, "finish_reason": 7}]}',
        "\x00\x1b[2J",
    ],
)
def test_what_is_no_completion_is_one_clear_error(collect, body):
    for status in (200, 418):
        with ScriptedEndpoint(lambda *_, status=status: Failure(status, body)) as endpoint:
            with pytest.raises(ChatsmithError) as error:
                collect(endpoint)
            assert len(str(error.value).splitlines()) == 1
        assert len(endpoint.requests) < 30
