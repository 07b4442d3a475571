"""Text from strangers reaches terminals, logs and pages as text: no control characters, and no lines of its own."""

import ast
import io
import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

import chatsmith
from chatsmith.cli import main
from chatsmith.errors import ChatsmithError
from chatsmith.report.reading import harmless
from chatsmith.runs.listing import show_runs
from chatsmith.screen.console import Screen
from chatsmith.screen.output import Console
from chatsmith.screen.text import printable, quoted, unbroken

PACKAGE = Path(chatsmith.__file__).parent
ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\x1b[1A\r\x08\u202e\u2066\x00\x7f"
SAID = "nothing is wrong"
HOSTILE = f"name{ESCAPES}\nRunError: {SAID}"
TEXTS = st.text(st.characters(), max_size=40) | st.lists(
    st.sampled_from(
        ["a", " ", "\n", "\r", "\t", "\x1b[31m", "\x1b]8;;http://x\x07", "\x85", "\u2028", "\u202e", "\ud800"]
    )
).map("".join)


def is_harmless(text):
    kept = "\n\t\u200c\u200d"
    return all(character in kept or unicodedata.category(character)[0] != "C" for character in text)


def undrawn(output):
    """What a terminal got, without what rich draws with: colours, and the cursor up, hidden and back."""
    return re.sub(r"\x1b\[[\d;]*[mAK]|\x1b\[\?25[lh]|\r", "", output).replace("\r\n", "\n")


@given(TEXTS)
def test_text_in_a_line_is_harmless_and_makes_no_other_line(text):
    for shown in (unbroken(text), quoted(text)):
        assert is_harmless(shown)
        assert len(shown.splitlines()) <= 1
    assert is_harmless(printable(text))
    assert quoted(text) == text or ast.literal_eval(quoted(text)) == text


@given(TEXTS)
def test_every_error_is_one_harmless_line(text):
    for kind in ChatsmithError.__subclasses__():
        message = str(kind(f"{text}: cannot be read. {text}"))
        assert is_harmless(message)
        assert len(message.splitlines()) == 1


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_what_a_console_prints_is_harmless_whatever_draws_it(text):
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60, color_system="truecolor")
        console.print(Text(text, style="red"), text, Text.from_ansi(text), markup=False)
        console.print({"key": text}, [text])
        assert is_harmless(undrawn(console.file.getvalue()))


def test_a_line_of_a_screen_stays_one_whatever_name_is_in_it(capsys):
    screen = Screen()
    screen.line(f"  everything is in {HOSTILE}")
    screen.command("chatsmith", "chat", HOSTILE)
    with screen.stage("sft", "Stage 1", 2) as shown:
        shown.warn(HOSTILE)
        shown.update(1, {"sft/loss": 1.0})
    output = capsys.readouterr().out
    assert is_harmless(output)
    assert not re.search(rf"^\W*RunError: {SAID}", output, re.MULTILINE)


def test_runs_with_hostile_names_and_manifests_are_rows(tmp_path, capsys):
    for name in (HOSTILE.replace("\x00", ""), "plain"):
        (tmp_path / name).mkdir()
        manifest = {"status": HOSTILE, "recipe": HOSTILE, "stages": {}, "summary": {}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / f"none{HOSTILE}".replace("\x00", "")).mkdir()
    show_runs(Screen(), tmp_path)
    output = capsys.readouterr().out
    assert is_harmless(output)
    assert not re.search(rf"^\W*RunError: {SAID}", output, re.MULTILINE)


PRINTS = """
import logging, sys, threading, traceback, warnings
from chatsmith.cli import prepare_streams
prepare_streams()
hostile = {hostile!r}
print(hostile)
print(hostile, file=sys.stderr)
sys.stdout.writelines([hostile])
sys.stderr.writelines([hostile])
warnings.warn(hostile)
logging.warning(hostile)
logging.getLogger("a.library").error("%s", hostile)
error = ValueError(hostile)
error.add_note(hostile)
traceback.print_exception(error)
thread = threading.Thread(target=lambda: exec("raise error", dict(error=error)))
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise error
Broken()
import tqdm
list(tqdm.tqdm(range(3), desc=hostile))
from chatsmith.screen.console import Screen
from chatsmith.screen.live import LiveStage, show
screen = Screen()
screen.line(hostile)
with show(screen.console, LiveStage("sft", 3, {{hostile: "running"}})) as stage:
    stage.answers([dict(prompt=hostile, answer=hostile, reward=1.0)])
    stage.warn(hostile)
    stage.update(0, {{"sft/loss": 1.0}})
    print(hostile)
    print(hostile, file=sys.stderr)
    warnings.warn(hostile + "again")
screen.table(hostile, [hostile, "b"], [[hostile, hostile]])
raise error
"""


def environment(**more):
    return {**os.environ, "PYTHONWARNINGS": "default", "PYTHONPATH": str(PACKAGE.parent), "CI": "", **more}


def in_terminal(command, **options):
    """All that a command writes to a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, **options)
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        output += piece
    os.close(ours)
    return output.decode(errors="surrogateescape"), process.wait()


def test_whoever_prints_is_guarded_in_a_pipe_and_in_a_terminal():
    program = PRINTS.format(hostile=HOSTILE)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60)
    for output in (result.stdout.decode(), result.stderr.decode()):
        assert output.count("RunError") >= 3
        assert is_harmless(output)
    shown, _ = in_terminal([sys.executable, "-c", program], env=environment(TERM="xterm-256color"))
    assert shown.count("RunError") >= 6
    assert is_harmless(undrawn(shown)), re.findall(r".{20}[^\n\t -~\x80-\uffff].{20}", undrawn(shown))


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", HOSTILE.replace("\x00", "")],
        ["report", HOSTILE.replace("\x00", "")],
        ["train", HOSTILE.replace("\x00", "")],
        ["train", "--actor-model", HOSTILE.replace("\x00", ""), "--data", HOSTILE.replace("\x00", "")],
        ["train", "--sft.lr", HOSTILE.replace("\x00", "")],
        ["data", "check", HOSTILE.replace("\x00", "")],
        [HOSTILE.replace("\x00", "")],
        ["--" + HOSTILE.replace("\x00", "")],
        ["chat", "m", "--temperature", HOSTILE.replace("\x00", "")],
        ["recipes", HOSTILE.replace("\x00", "")],
        ["runs", HOSTILE.replace("\x00", "")],
    ],
)
def test_a_command_says_nothing_but_text(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chatsmith", *arguments])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the guard goes with the test
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit):
        main()
    output = capsys.readouterr()
    assert is_harmless(output.out + output.err)
    assert output.out + output.err


def test_a_bug_still_exits_3_with_a_traceback_which_is_text(monkeypatch, capsys):
    def broken():
        raise ZeroDivisionError(HOSTILE)

    monkeypatch.setattr("chatsmith.resolve.builtin_recipes", broken)
    monkeypatch.setattr(sys, "argv", ["chatsmith", "recipes"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 3
    assert "Traceback" in said
    assert "bug in chatsmith" in said
    assert is_harmless(said)


@given(TEXTS)
def test_what_a_page_shows_is_harmless(text):
    shown = harmless(text)
    assert not any(
        unicodedata.category(c) in ("Cc", "Cs") or c in "\u202a\u202e\u2066" for c in shown if c not in "\n\t"
    )


def test_nobody_prints_past_the_one_way_out():
    allowed = PACKAGE / "output.py"
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if file == allowed:
                continue
            place = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                names = {alias.name for alias in node.names if alias.asname is None}
                assert not names & {"Console", "print", "get_console"}, place
            if isinstance(node, ast.Name):
                assert node.id != "print", place
            if isinstance(node, ast.Attribute):
                what = ast.unparse(node)
                assert not re.fullmatch(
                    r"(typer|click)\.(echo|secho)|sys\.__std\w+__|sys\.std(out|err)\.(write\w*|buffer)", what
                ), place
