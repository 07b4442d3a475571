"""`chatsmith chat` as a person meets it: in a terminal, and in a pipe."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from bigram import bigram_model
from tiny import byte_tokenizer

from chatsmith.data.formats import to_record
from chatsmith.data.sources import read_source
from chatsmith.data.spec import parse_spec
from chatsmith.types import Answer, Message

ANSWERS = "abcdefgh"


class Terminal:
    """A command with a terminal of its own; `seen` is all that it has written to it."""

    def __init__(self, *command, **environment):
        self.seen = ""
        self._read = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._pid, self._end = pty.fork()
        if self._pid == 0:
            os.execve(command[0], command, os.environ | environment)
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0))

    def until(self, pattern, timeout_s=60):
        """What is written up to a match of `pattern`, from where the last one ended; returns it."""
        end = time.monotonic() + timeout_s
        while not (match := re.compile(pattern).search(self.seen, self._read)):
            ready, _, _ = select.select([self._end], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} after {timeout_s} s in: {self.seen[self._read :]!r}"
            assert self._more(), f"ended without {pattern!r}: {self.seen[self._read :]!r}"
        text = self.seen[self._read : match.end()]
        self._read = match.end()
        return text

    def type(self, line):
        """Enter a line at the prompt; the echo is skipped."""
        self.until("> ")
        os.write(self._end, f"{line}\r".encode())
        self.until(re.escape(line) + "\r\n")

    def until_it_waits(self, timeout_s=60):
        """Until its main thread sleeps, as Linux tells, and for longer than locks and files make it wait."""
        end, asleep = time.monotonic() + timeout_s, 0
        while asleep < 30:
            state = Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2][0]
            asleep = asleep + 1 if state == "S" else 0
            assert time.monotonic() < end, f"does not wait after {timeout_s} s"
            time.sleep(0.01)

    def press(self, key):
        os.write(self._end, key)

    def leave(self):
        """Ctrl-D at the prompt; returns the exit code."""
        self.until("> ")
        self.press(b"\x04")
        return self.exit_code()

    def exit_code(self):
        end = time.monotonic() + 60
        while select.select([self._end], [], [], max(0, end - time.monotonic()))[0] and self._more():
            pass
        assert time.monotonic() < end, f"does not end: {self.seen[self._read :]!r}"
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._end)

    def _more(self):
        try:
            data = os.read(self._end, 4096)
        except OSError:  # Linux says so when the other end is closed
            data = b""
        self.seen += self._decoder.decode(data)
        return bool(data)


@pytest.fixture(scope="session")
def speaking(tmp_path_factory):
    """A directory with a model that gives one of the answers; see `bigram_model`."""

    def make(*answers, **options):
        path = tmp_path_factory.mktemp("speaking")
        bigram_model(*answers, **options).save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
        return path

    return make


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(path, *options, **environment):
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"} | environment
        opened.append(Terminal(sys.executable, "-m", "chatsmith", "chat", str(path), *map(str, options), **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def piped(command, tmp_path):
    def run(path, text, *options):
        return subprocess.run(
            command("chat", path, *options, small=False),
            input=text if isinstance(text, bytes) else text.encode(),
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            timeout=120,
        )

    return run


def answered(screen):
    """The answer that stands below the line just typed."""
    return screen.until(r"(?=\r\n)").replace("\x1b[?2004l", "").strip()  # the terminal is told that no paste is awaited


def test_a_talk_is_remembered_sampled_again_cleared_and_saved_for_training(terminal, speaking, tmp_path):
    screen = terminal(speaking(*ANSWERS), "--system", "Be kind.", "--seed", 1)
    heading = screen.until("Ctrl-D leaves")
    assert "llama, 0.3 M parameters, on c" in heading
    screen.type("/regen")
    screen.until("nothing has been answered yet")
    screen.type("你好")
    first = answered(screen)
    assert len(first) == 1
    assert first in ANSWERS
    others = []
    for _ in range(8):
        screen.type("/regen")
        others.append(answered(screen))
    assert set(others) <= set(ANSWERS)
    assert len({first, *others}) > 1, "another sample, not the same one"
    screen.type("And then?")
    last = answered(screen)
    screen.type("/save talk.txt")
    screen.until("ends in .jsonl")
    file = tmp_path / "talk.jsonl"
    screen.type(f"/save {file}")
    screen.until("2 answers saved")
    before = file.read_text()
    screen.type(f"/save {file}")
    screen.until("exists and stays as it is")
    assert file.read_text() == before

    (record,) = read_source(parse_spec(f"sft:{file}"), on_error="raise", split_seed=0).records
    assert record.prompt == (
        Message("system", "Be kind."),
        Message("user", "你好"),
        Message("assistant", others[-1]),
        Message("user", "And then?"),
    )
    assert record.answers == (Answer(last),)

    screen.type("/clear")
    screen.type("/system")
    screen.type(" /regen is a command, and this is none")
    only = answered(screen)
    screen.type(f"/save {tmp_path / 'second.jsonl'}")
    screen.until("1 answers? saved")
    assert to_record(json.loads((tmp_path / "second.jsonl").read_text()), "test").prompt == (
        Message("user", "/regen is a command, and this is none"),
    )
    assert only in ANSWERS
    screen.type("/nonsense")
    screen.until("no command /nonsense: /help")
    assert screen.leave() == 0


def test_an_answer_is_shown_while_it_is_spoken_and_ctrl_c_stops_it_alone(terminal, speaking, tmp_path):
    screen = terminal(speaking("你👋\x1b]0;gotcha\x07[31m", forever=True), "--max-new-tokens", 4000)
    screen.type("Hi")
    screen.until("你.*你.*你")
    screen.press(b"\x03")
    rest = screen.until(r"\(stopped\)")
    assert "max-new-tokens" not in rest
    assert len(rest) < 4000, "long before its end"
    screen.type("Still there?")
    screen.until("你.*你")
    screen.press(b"\x03")
    screen.until(r"\(stopped\)")
    file = tmp_path / "cut.jsonl"
    screen.type(f"/save {file}")
    screen.until("2 answers saved to .*; 2 of the answers did not end by themselves")
    _, one, _, other = json.loads(file.read_text())["messages"]
    assert one["content"].startswith("你👋\x1b]0;gotcha\x07[31m你"), "kept as the model said it"
    assert other["content"].startswith("你")
    assert "\x1b]0" not in screen.seen
    assert "\x07" not in screen.seen
    assert "你👋�]0;gotcha�[31m你" in screen.seen


def test_ctrl_c_at_the_prompt_clears_the_line_and_a_second_one_leaves(terminal, speaking):
    screen = terminal(speaking("ab"))
    for typed in (b"half a quest", b""):  # what is said in between makes the next Ctrl-C a first one again
        screen.until("> ")
        screen.press(typed)
        screen.until_it_waits()  # input() misses a signal that comes between its prompt and its waiting
        screen.press(b"\x03")
        screen.until("Ctrl-C once more leaves; so do Ctrl-D and /quit")
        screen.type("Hi")
        assert answered(screen) == "ab"
    for _ in range(2):
        screen.until("> ")
        screen.until_it_waits()
        screen.press(b"\x03")
    assert screen.exit_code() == 0
    assert screen.seen.count("once more leaves") == 3
    assert "Traceback" not in screen.seen


def test_a_pasted_text_of_several_lines_is_one_question(terminal, speaking, tmp_path):
    screen = terminal(speaking("ab"))
    screen.until(r"\x1b\[\?2004h")  # the terminal marks pastes from here on
    screen.until("> ")
    pasted = "/usr/bin/cc: error\nin line 2:\n\n    x = 1"
    screen.press(f"What is wrong? \x1b[200~{pasted}\x1b[201~\r".encode())
    screen.until("ab\r\n")
    screen.until("> ")
    screen.press(f"\x1b[200~{pasted}\n\x1b[201~\r".encode())  # neither a command nor an empty line at its end
    screen.until("ab\r\n")
    screen.type(f"/save {tmp_path / 'talk.jsonl'}")
    screen.until("2 answers saved")
    turns = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [turn["content"] for turn in turns] == [f"What is wrong? {pasted}", "ab", pasted, "ab"]
    assert screen.leave() == 0


def test_limits_are_said_and_name_what_to_do(terminal, speaking):
    screen = terminal(speaking("abc", forever=True, context=120), "--max-new-tokens", 5, NO_COLOR="1", TERM="dumb")
    screen.type("Hi")
    assert answered(screen) == "abcab"
    screen.until(r"\(stopped at 5 tokens: --max-new-tokens\)")
    screen.type("x" * 67)  # leaves room for 2 or 3 tokens
    screen.until(r"/clear begins anew")
    screen.type("And now?")
    screen.until(r"(?s)takes 120.*no room.*\(/clear")
    screen.type("/clear")
    screen.type("Hi")
    assert answered(screen) == "abcab"
    screen.type("/quit")
    assert screen.exit_code() == 0
    assert "\x1b[3" not in screen.seen, "no colour"


def test_a_run_says_what_it_is_and_what_to_try(terminal, speaking, tmp_path):
    run = tmp_path / "run"
    (run / "rl").mkdir(parents=True)
    speaking(*ANSWERS).rename(run / "rl" / "actor")
    entry = {"status": "failed", "verdict": "gain +0.1, KL 9. Failed: \x1b[2Jthe policy left the SFT model."}
    (run / "manifest.json").write_text(json.dumps({"stages": {"rl": entry}, "config": {"world": {"layers": 4}}}))
    prompts = [
        "Say red 3 times.",
        "Say red 3 times.",
        "x" * 500,
        "两\n行",
        "把红说2遍。",
        "2 + 3?",
        "Spell\x1b[2J cat.",
    ]
    (run / "rl" / "samples.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    screen = terminal(run, "--temperature", 0)
    heading = screen.until("Ctrl-D leaves")
    assert "the assistant after PPO (rl)" in heading
    assert "rl failed: gain +0.1, KL 9. Failed: �[2Jthe policy left" in heading
    assert "Try: Say red 3 times.\r\n     2 + 3?\r\n     Spell�[2J cat.\r\n" in heading  # those in ASCII come first
    assert "each is asked by itself" in heading
    for question in ("One?", "Two?"):
        screen.type(question)
        answered(screen)
    screen.type(f"/save {tmp_path / 'talk.jsonl'}")
    screen.until("2 answers saved")
    rows = [json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [[turn["role"] for turn in row] for row in rows] == [["user", "assistant"]] * 2
    assert screen.leave() == 0


def test_in_a_pipe_only_the_answers_come_out(piped, speaking, tmp_path):
    text = f"Hi\n\n第二\n/save {tmp_path}/talk.jsonl\n".encode() + b"caf\xe9\n/quit\nnever asked\n"
    result = piped(speaking("你👋\x1b[31m"), text)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "你👋�[31m\n" * 3
    assert "2 answers saved" in result.stderr.decode().replace("\n", " ")
    (row,) = (tmp_path / "talk.jsonl").read_text().splitlines()
    assert [turn["content"] for turn in json.loads(row)["messages"][::2]] == ["Hi", "第二"]


def test_an_answer_ends_before_a_stop_string(piped, speaking):
    result = piped(speaking("abc你 xyz"), "Hi\nHi\n", "--stop", "never", "--stop", "你 x", "--top-k", "1")
    assert result.stdout.decode() == "abc\nabc\n", result.stderr


def test_in_a_pipe_the_first_error_ends_it(piped, speaking):
    result = piped(speaking("abc", context=40), "Hi\nAnd what would you say to a longer question?\nHi\n")
    assert result.returncode == 1
    assert result.stdout == b"abc\n"
    assert result.stderr.decode().startswith("RequestError: the conversation has ")
    assert len(result.stderr.decode().strip().splitlines()) == 1


def test_a_setting_out_of_range_is_one_line_before_anything_is_loaded(piped):
    result = piped("no-such-model", "Hi\n", "--top-p", "0")
    assert result.returncode == 1
    assert result.stderr.decode().startswith("RequestError: top_p = 0.0")
    assert len(result.stderr.decode().strip().splitlines()) == 1
