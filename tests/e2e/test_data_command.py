"""`chatsmith data check` and `chatsmith data show` as a user types them, and what a run says of its data."""

import json
import sys

import pytest

from chatsmith.cli import main

ROOM = ("--data.held_out", 0.4, "--rl.max_new_tokens", 12)


@pytest.fixture
def broken(tmp_path):
    """Preferences with a bad line, a placeholder, and control characters."""
    rows = [{"prompt": f"question {i} of {i * i}", "chosen": f"yes {i}!", "rejected": f"no {i}?"} for i in range(80)]
    rows[3]["chosen"] = "\x1b[2J{{name}}"
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    return path


def test_check_says_what_is_wrong_and_fails_where_a_run_would(chatsmith, broken, model_directory):
    result = chatsmith("data", "check", broken, "--actor-model", model_directory(), *ROOM, small=False)
    assert result.returncode == 1 and result.stderr == ""
    assert "error  bad records, which cannot be read: 1 of 81" in result.stdout
    assert "broken.jsonl:81  broken JSON at column 2" in result.stdout
    assert "placeholders such as {{name}}" in result.stdout and "broken.jsonl:4" in result.stdout
    assert "\x1b" not in result.stdout
    assert "1 error," in result.stdout.splitlines()[-1]
    skipped = chatsmith("data", "check", broken, *ROOM, "--data.on_error", "skip", small=False)
    assert skipped.returncode == 0 and "characters" in skipped.stdout


def test_check_takes_a_recipe_and_overrides(chatsmith, pairs, tmp_path, model_directory):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'actor_model = "{model_directory()}"\n[data]\nsources = ["{pairs}"]\nheld_out = 0.4\n')
    result = chatsmith("data", "check", "--recipe", recipe, "--rl.max_new_tokens", 12, small=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "none is longer than 256" in result.stdout  # the model's context
    result = chatsmith("data", "check", "--recipe", recipe, "--data.max_tokens", 4, small=False)
    assert result.returncode == 1 and "longer than 4 tokens" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "name a source"),
        (["check", "--recipe", "tiny-cpu"], "makes its own data"),
        (["check", "x.jsonl", "--data.max_token", "3"], "did you mean"),
        (["show", "x.jsonl"], "give --actor-model"),
        (["check", "x.jsonl", "--map", "{prompt}"], "write KEY=VALUE"),
        (["check", "--map", "prompt={q}"], "name these as SPECs"),
        (["check", "x.jsonl", "--map", "promt={q}"], 'did you mean "prompt"?'),
        (["check", "x.jsonl", "--map", "answer={a}"], "which is no record"),
        (["show", "x.jsonl", "--stage", "sfd", "--actor-model", "m"], "the stages are sft, pairs, reward, rl, ptx"),
    ],
)
def test_a_wrong_command_is_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["chatsmith", "data", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said.startswith("ConfigError: ") and said.count("\n") == 1 and message in said


def test_a_mapping_is_tried_without_a_recipe(monkeypatch, capsys, tmp_path):
    rows = [
        {"Body": f"Ann has {i}.", "Question": f"Why {i * i}?", "good": "So.", "bad": "No.", "best": "1"}
        for i in range(50)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen, rejected = '{ by = "best", "1" = "{good}", "0" = "{bad}" }', "{bad}"
    given = ("prompt={Body} {Question}", f"chosen={chosen}", f"rejected={rejected}")
    mapping = [word for entry in given for word in ("--map", entry)]
    command = ["chatsmith", "data", "check", f"reward:{tmp_path / 'a.jsonl'}", *mapping, "--data.held_out", "0.2"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().out
    assert stopped.value.code == 0, said
    assert "50 records" in said and "the better answer is" not in said
    assert "no part of a record is made of" not in said  # every column is used


def test_show_shows_the_same_records_again_and_one_by_its_place(chatsmith, pairs, model_directory):
    def show(*arguments):
        result = chatsmith("data", "show", pairs, "--actor-model", model_directory(), *arguments, small=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = show("-n", 2, "--stage", "reward")
    assert first.count("pairs.jsonl:") == 2 and first.count("answer 1, score 1") == 2 and "pairs: 1 > 2" in first
    assert first == show("-n", 2, "--stage", "reward") != show("-n", 2, "--stage", "reward", "--seed", 2)
    one = show("--at", "pairs.jsonl:7", "--stage", "rl")
    row = json.loads(pairs.read_text().splitlines()[6])
    assert "|".join(f"Human: {row['prompt']}") in one and "this record goes to: " in one


def test_show_says_why_a_record_cannot_be_read(chatsmith, broken, model_directory):
    options = ("--actor-model", model_directory(), "--at", "broken.jsonl:81")
    result = chatsmith("data", "show", broken, *options, small=False)
    assert result.returncode == 1 and result.stderr.startswith("DataError: ") and "broken JSON" in result.stderr


def test_a_run_writes_down_what_its_data_is_like_and_names_what_is_not_for_commercial_use(
    chatsmith, pairs, model_directory, tmp_path
):
    (tmp_path / "LICENSE").write_text("CC BY-NC 4.0\n")
    run = ("train", "--actor-model", model_directory(), "--data", pairs, "--run-dir", tmp_path / "run", "--force")
    result = chatsmith(*run, "--only", "sft")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("not for commercial use") == 3  # where it is read, as a finding, and at the end
    facts = json.loads((tmp_path / "run/data.json").read_text())
    assert facts["unit"] == "tokens" and facts["sources"][0]["non_commercial"] is True
    assert [example["stage"] for example in facts["examples"]] == ["sft", "reward", "rl"]
    (row,) = facts["examples"][0]["rows"]
    assert "".join(text for text, is_learned, _ in row["tokens"] if is_learned).endswith("!</s>")
    page = (tmp_path / "run/report.html").read_text()
    assert "As the stages see it" in page and "CC BY-NC 4.0" in page

    written = (tmp_path / "run/data.json").stat().st_mtime_ns
    assert chatsmith(*run, "--only", "sft").returncode == 0
    assert (tmp_path / "run/data.json").stat().st_mtime_ns == written
    assert chatsmith(*run, "--only", "sft", "--from", "sft").returncode == 0
    assert (tmp_path / "run/data.json").stat().st_mtime_ns > written
