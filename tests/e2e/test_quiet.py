"""What goes well writes nothing to standard error: not even what libraries say of their next versions."""

import os
import subprocess
import sys

import pytest
from bigram import bigram_model
from tiny import byte_tokenizer

# a library of the future: the reward is imported and called inside the command
LIBRARY = """
import warnings

def vowels(samples):
    warnings.warn("the argument `a` is renamed", FutureWarning)
    warnings.warn("vowels() is renamed", DeprecationWarning)
    warnings.warn("vowels() is deprecated")
    return [float(sum(c in "aeiou" for c in sample.answer)) for sample in samples]
"""


@pytest.fixture
def run(chatsmith, monkeypatch):
    """chatsmith in a user's environment, in which nobody asked for warnings."""
    monkeypatch.delenv("PYTHONWARNINGS")
    return chatsmith


def test_a_healthy_run_chat_and_bench_say_nothing_on_standard_error(run, command, model_directory, pairs, tmp_path):
    (tmp_path / "rewards.py").write_text(LIBRARY)
    arguments = ("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", "run", "--force")
    trained = run(*arguments, "--reward", "rewards.py:vowels")
    assert (trained.returncode, trained.stderr) == (0, "")
    speaking = tmp_path / "speaking"  # the trained model is too small to end an answer, and chat would say so
    bigram_model("ab").save_pretrained(speaking)
    byte_tokenizer().save_pretrained(speaking)
    asked = subprocess.run(
        command("chat", speaking, small=False),
        input="red cat\nblue sea\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout == "ab\nab\n"
    bench = ("bench", "run", "--batch", 2, "--prompt-tokens", 4, "--answer-tokens", 4)
    for arguments in (bench, ("runs", "."), ("report", "run"), ("data", "check", pairs)):
        shown = run(*arguments, small=False)
        assert (shown.returncode, shown.stderr) == (0, ""), arguments


@pytest.mark.parametrize(("options", "shown"), [((), False), (("-W", "always::FutureWarning"), True)])
def test_only_who_asks_for_warnings_gets_them(options, shown, monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS")
    code = "import warnings, chatsmith.cli as cli; cli.silence_deprecations(); warnings.warn('`a` is b', FutureWarning)"
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert ("FutureWarning: `a` is b" in result.stderr) == shown
    assert shown or result.stderr == ""
