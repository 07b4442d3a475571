"""What stands on the screen: curves in a terminal, plain lines everywhere else."""

import contextlib
import io
import os
import re
import sys
import threading

import pytest
from rich.cells import cell_len
from rich.console import Console

from chatsmith.screen.console import Screen
from chatsmith.screen.live import LiveStage
from chatsmith.screen.text import BARS
from chatsmith.verdicts import Verdict

HOSTILE = {"prompt": "[bold]2 + 3?[/bold]\n", "answer": "5\x1b[2J\x07\x1b]0;owned\x07\u202e", "reward": 1.5}
STEPS = 12


class Terminal:
    """A pseudo-terminal as standard output; `text` is all that was written to it."""

    def __init__(self) -> None:
        master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._master, self._parts = master, []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(self._master, 65536):
                self._parts.append(data)

    def text(self) -> str:
        self.file.close()
        self._reader.join(timeout=10)
        return b"".join(self._parts).decode("utf-8")


@pytest.fixture
def terminal(monkeypatch):
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    made = Terminal()
    yield made
    made.file.close()


def watch(out):
    """A short stage with an answer and a warning."""
    with contextlib.redirect_stdout(out):
        _watch(Screen())


def _watch(screen):
    road = {"sft": "passed", "reward": "forced", "rl": "running"}
    with screen.stage("rl", "Stage 3 of 3: PPO", STEPS, road) as shown:
        shown.resume([{"step": 0, "rl/reward_mean": -1.0, "rl/kl": None}])
        for step in range(1, STEPS):
            shown.update(step, {"rl/reward_mean": step / STEPS, "rl/kl": 0.25, "gold/total": 0.5})
            shown.answers([HOSTILE])
            if step == 6:
                shown.warn("entropy falls[/]\x1b[5m")
                if screen.is_live:
                    screen.console._live_stack[-1].refresh()


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_the_road_the_bar_the_curves_and_the_last_answer(terminal):
    watch(terminal.file)
    text = without_codes(terminal.text())
    assert "✓ SFT passed   ! reward model forced   ● PPO" in text
    assert re.search(r"━━+─+  7/12   \d+ s left", text)
    assert re.search(r"reward +0\.500  ▁[▁-█]{6}\s", text)
    assert re.search(r"KL +0\.250   ▄{6}\s", text)  # the first value is missing: a gap
    assert "prompt  [bold]2 + 3?[/bold]" in text
    assert "reward  +1.500" in text
    assert "warning: entropy falls[/]" in text


def test_when_a_stage_ends_only_its_summary_stays(terminal):
    watch(terminal.file)
    last = without_codes(terminal.text().split("\x1b[2K")[-1]).strip("\r\n").splitlines()
    assert last[0].startswith("  ✓ 12 steps, 11 of them now, in ")  # one was made by an earlier command
    assert len(last) == 3
    assert re.search(r"reward +-1\.000 → 0\.917", last[1] + last[2])


def test_a_stage_that_is_left_early_says_how_far_it_came(terminal):
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.redirect_stdout(terminal.file),
        Screen().stage("sft", "Stage 1 of 3", 10, {"sft": "running"}) as shown,
    ):
        shown.update(3, {"sft/loss": 1.0})
        raise KeyboardInterrupt
    assert "■ stopped after 4 of 10 steps" in without_codes(terminal.text())


def test_an_answer_cannot_steer_the_terminal(terminal):
    watch(terminal.file)
    text = terminal.text()
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\x1b[5m" not in text
    assert "answer  5�[2J��]0;owned��" in without_codes(text)


@pytest.mark.parametrize(("height", "lines"), [("24", 15), ("12", 10), ("7", 6), ("3", 2)])
def test_the_panel_fits_into_small_terminals(height, lines):
    stage = LiveStage("rl", STEPS, {"sft": "passed", "rl": "running"})
    stage.update(0, dict.fromkeys(("rl/reward_mean", "rl/kl", "rl/entropy", "rl/answer_length", "gold/total"), 1.0))
    stage.answers([HOSTILE | {"prompt": "word " * 100, "answer": "请问" * 100}])
    for width in (30, 80):
        file = io.StringIO()
        Console(file=file, width=width, height=int(height)).print(stage)
        shown = file.getvalue().splitlines()
        assert len(shown) <= lines < int(height)
        assert any("1/12" in line for line in shown)
        assert max(map(cell_len, shown)) <= width


def test_no_color_gives_no_colour(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    watch(terminal.file)
    codes = {int(n) for code in re.findall(r"\x1b\[([\d;]*)m", terminal.text()) for n in code.split(";") if n}
    assert codes <= {0, 1, 2, 22}  # plain, bold, faint


def test_with_colour_there_are_colours(terminal):
    watch(terminal.file)
    assert "\x1b[36m" in terminal.text()


@pytest.mark.parametrize("name", ["CI", "TERM"])
def test_in_ci_and_on_a_dumb_terminal_there_are_plain_lines(name, terminal, monkeypatch):
    monkeypatch.setenv(name, {"CI": "1", "TERM": "dumb"}[name])
    watch(terminal.file)
    text = without_codes(terminal.text())
    assert "rl 12/12  reward mean 0.917  kl 0.250  gold/total 0.500  0 s left" in text
    assert not set(BARS) & set(text)


def test_a_pipe_gets_plain_lines_also_where_colour_is_forced(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Screen().is_live
    monkeypatch.delenv("FORCE_COLOR")
    watch(sys.stdout)
    text = capfd.readouterr().out
    assert "\x1b" not in text
    assert "rl 12/12" in text
    assert "warning: entropy falls[/]�[5m" in text


def test_where_the_encoding_lacks_a_character_a_question_mark_stands():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    watch(out)
    with contextlib.redirect_stdout(out):
        Screen().line("你好")
    out.flush()
    assert raw.getvalue().decode("latin-1").endswith("??\n")


def test_a_verdict_is_passed_or_passed_with_what_it_is_unfit_for_or_failed(capsys):
    screen = Screen()
    for verdict in (
        Verdict(True, "loss fell"),
        Verdict(True, "loss fell", "more", ("EOS was never learned",), ("answers that end", "\x1b[2Jlong ones")),
        Verdict(False, "loss did not fall", "", (), ("nothing",)),
    ):
        screen.verdict("sft", verdict, forced=False)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "  sft PASSED: loss fell",
        "  sft PASSED with a warning, unfit for answers that end; \ufffd[2Jlong ones: loss fell; more",
        "  warning: EOS was never learned",
        "  sft FAILED: loss did not fall.",
    ]
