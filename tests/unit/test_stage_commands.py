"""Every stage of the table has a command, with the options that its entry names."""

import inspect
from dataclasses import replace

from typer.testing import CliRunner

from chatsmith import cli
from chatsmith.stages.table import TABLE


def options_of(command):
    return set(inspect.signature(command).parameters)


def test_a_stage_has_the_options_of_train_that_are_for_all_and_those_of_its_entry():
    commands = {command.name: command.callback for command in cli.app.registered_commands}
    for stage in TABLE:
        of_all = options_of(cli.train) - {"reward_model", "rewards", "judge", "stages", "only"}
        assert options_of(commands[stage.name]) == of_all | set(stage.options)


def test_a_new_stage_brings_its_command_and_says_in_its_own_words_what_an_option_means(monkeypatch):
    given = []
    monkeypatch.setattr(cli, "_train", lambda overrides, **options: given.append(options))
    app = cli.typer.Typer()
    app.command("fresh")(cli._alone(replace(TABLE[0], name="fresh", options={"rewards": "What it asks."})))
    said = CliRunner().invoke(app, ["--help"]).output
    assert "What it asks." in said and "--reward " in said and "--reward-model" not in said
    assert CliRunner().invoke(app, ["--reward", "a.py:f", "--seed", "3"]).exit_code == 0
    assert given[0]["stages"] == ["fresh"] and given[0]["rewards"] == ["a.py:f"] and given[0]["seed"] == 3
    assert "only" not in given[0] and "reward_model" not in given[0]
