"""`chatsmith collect self-instruct` as a process: killed, interrupted, refused."""

import json
import os
import signal
import subprocess
import time

import pytest
from scripted_endpoint import Failure, ScriptedEndpoint, asks_for_instructions, writer

pytest.importorskip("openai")
pytest.importorskip("rapidfuzz")

KEY = "sk-recognisable-7f3a91"


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Name three fruits."}\n{"instruction": "Why is the sky blue?"}\n')
    return path


@pytest.fixture
def collecting(command, seeds, tmp_path):
    """The command line of a collection."""

    def build(endpoint, *options):
        required = ("--seeds", seeds, "--endpoint", endpoint.url, "--model", "m", "--output", tmp_path / "out.jsonl")
        return command("collect", "self-instruct", *required, *options, small=False)

    return build


def start(arguments, **environment):
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def finish(arguments, **environment):
    return subprocess.run(arguments, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def until(condition, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_kill_loses_at_most_the_requests_under_way(collecting, tmp_path):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    with ScriptedEndpoint(delay_s=lambda number: 0.05) as endpoint:
        whole = finish(collecting(endpoint, "-n", 40))
        assert whole.returncode == 0, whole.stderr
        needed, expected = len(endpoint.requests), [json.loads(line)["instruction"] for line in lines(output)]
        output.unlink()
        journal.unlink()
        for reached in (12, 24):
            process = start(collecting(endpoint, "-n", 40))
            until(lambda: len(lines(output)) >= reached)  # noqa: B023
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        with output.open("a") as file:
            file.write('{"instruction": "Half a rec')  # what a kill in the middle of a line leaves
        result = finish(collecting(endpoint, "-n", 40))
        assert result.returncode == 0, result.stderr
        assert "out.jsonl: its last line was cut off by a kill; the 27 bytes of it are taken out" in result.stdout
        assert [json.loads(line)["instruction"] for line in lines(output)] == expected
        assert needed < len(endpoint.requests) - needed <= needed + 2 * 8
        again = finish(collecting(endpoint, "-n", 40))
        assert "40 of 40 records" in again.stdout
        assert len(endpoint.requests) <= 2 * needed + 2 * 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_what_is_under_way_and_says_how_to_go_on(collecting, tmp_path, number):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    with ScriptedEndpoint(delay_s=lambda number: 0.1) as endpoint:
        process = start(collecting(endpoint, "-n", 500))
        until(lambda: len(lines(output)) >= 10)
        process.send_signal(number)
        said, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert errors == ""
        assert f"interrupted by {number.name}; the same command goes on" in said
        assert len(lines(journal)) == 1 + len(endpoint.requests), "the settings, and every reply"
        kept = len(lines(output))
        result = finish(collecting(endpoint, "-n", kept + 5))
    assert result.returncode == 0, result.stderr
    assert f"going on: {kept} records are there" in result.stdout
    assert len(lines(output)) == kept + 5


def test_the_key_is_sent_and_reaches_nothing_that_is_written_or_printed(collecting, tmp_path):
    def say(content, number):
        return writer(content, number) if asks_for_instructions(content) else refusal

    for status in (400, 401, 429, 500):
        body = '{"error": {"message": "headers: {authorization}", "code": "{authorization}"}}'
        refusal = Failure(status, body, {"Retry-After": "0.01", "X-Echo": KEY})
        with ScriptedEndpoint(say) as endpoint:
            result = finish(collecting(endpoint), OPENAI_API_KEY=KEY)
        assert endpoint.authorization == {f"Bearer {KEY}"}
        assert result.returncode == 1
        assert f"({status})" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"instruction" in written
        assert KEY.encode() not in written
        assert KEY not in result.stdout + result.stderr
        for path in tmp_path.glob("out.jsonl*"):
            path.unlink()


def test_what_was_collected_trains(collecting, chatsmith, model_directory, tmp_path):
    with ScriptedEndpoint() as endpoint:
        prices = ("--price-input", 0.1, "--price-output", 0.4, "--budget", 1)
        result = finish(collecting(endpoint, "-n", 20, *prices))
    assert result.returncode == 0, result.stderr
    assert "replies: 23; tokens: 2,300 in, 1,150 out; $0.0007 of $1.00" in result.stdout
    options = ("--data", tmp_path / "out.jsonl", "--data.max_tokens", "500", "--dry-run")
    options += ("--data.held_out", "0.4", "--engine.device", "cpu")
    trained = chatsmith("sft", "--actor-model", model_directory("bloom"), *options, small=False)  # it sets no limit
    assert trained.returncode == 0, trained.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "5"), "ConfigError: --budget needs prices."),
        (("--price-input", "1"), "ConfigError: --price-input and --price-output belong together."),
    ],
)
def test_a_budget_without_both_prices_is_refused(collecting, options, message):
    with ScriptedEndpoint() as endpoint:
        result = finish(collecting(endpoint, *options))
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert endpoint.requests == []
