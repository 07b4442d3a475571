"""What a run prints to type next: a shell takes it as it stands, and it carries everything that was changed by hand."""

import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatsmith.cli import split_arguments
from chatsmith.config import Config
from chatsmith.next_commands import next_commands
from chatsmith.report.settings import repeated
from chatsmith.resolve import nested, parse_overrides, read_recipe, resolve
from chatsmith.runs.manifest import Manifest, StageEntry, write_manifest
from chatsmith.runs.run import Run, check_directory
from chatsmith.runs.runtime import StopSignals
from chatsmith.screen.console import Screen

NAMED = {"--seed": "seed", "--actor-model": "actor_model", "--reward-model": "reward_model"}
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 9),
        "data.held_out": st.sampled_from([0.05, 0.1]),
        "sft.epochs": st.sampled_from([0.5, 1.0, 3.0]),
        "sft.schedule": st.sampled_from(["cosine", "linear"]),
        "rl.rollouts": st.sampled_from([64, 128]),
        "rl.value_clip": st.sampled_from([None, 0.1]),
        "rl.truncated_score": st.sampled_from(["none", "mask", -2.0]),
        "rl.betas": st.just((0.8, 0.9)),
        "rl.kl_target": st.sampled_from([None, 2.0]),
        "engine.device": st.sampled_from(["auto", "cpu"]),
        "engine.compile": st.booleans(),
        "world.prompts": st.sampled_from([100, 4000]),
        "world.label_noise": st.sampled_from([0.0, 0.2]),
    },
)


def configured(words):
    """The configuration that a command stands for, as `chatsmith.cli` makes it, and its other options."""
    overrides, (command, *rest) = split_arguments(words)
    assert command == "train"
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else "tiny-cpu"
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    flat = {NAMED[name]: value for name, value in options.items() if name in NAMED}
    layers = [(recipe, read_recipe(recipe)), ("named", nested(flat)), ("command line", parse_overrides(overrides))]
    return resolve(layers), options


def finished(config, directory, recipe):
    manifest = {
        "version": 1,
        "status": "finished",
        "recipe": recipe,
        "config": config.model_dump(mode="json"),
        "stages": {"sft": {}, "reward": {}, "rl": {"report": {"steps": 22}}},
    }
    return Run(config, directory, Screen(), StopSignals(), False, Manifest.model_validate(manifest))


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_the_command_of_the_second_act_continues_a_copy_of_a_changed_demo(changes):
    given_keys = nested({key: "none" if value is None else value for key, value in changes.items()})
    config = resolve([("tiny-cpu", read_recipe("tiny-cpu")), ("command line", given_keys)])
    with tempfile.TemporaryDirectory(prefix="my runs ") as folder:
        run = finished(config, Path(folder) / "a b; c", "tiny-cpu")
        _, line = next_commands(run)[-1]
        copying, _, training = line.partition(" && ")
        target = f"{folder}/a b; c-no-kl"
        assert shlex.split(copying) == ["cp", "-r", f"{folder}/a b; c", target]
        again, options = configured(shlex.split(training)[1:])
        assert options["--run-dir"] == target
        assert (again.rl.kl_coef, again.rl.schedule, again.rl.steps) == (0, "constant", 44)
        Path(target).mkdir()
        write_manifest(Path(target), run.manifest)
        check_directory(again, Path(target), "rl")  # refuses a copy of a run with other settings
        loose = {"kl_coef": 0, "schedule": "constant", "steps": 44}
        assert again.rl == config.rl.model_copy(update=loose)


@given(CHANGES)
@settings(max_examples=60, deadline=None)
def test_what_repeats_a_run_without_a_recipe_that_is_still_there_is_complete(changes):
    changes = nested({key: "none" if value is None else value for key, value in changes.items()})
    config = resolve([("tiny-cpu", read_recipe("tiny-cpu")), ("command line", changes)])
    again, _ = configured(repeated(config.model_dump(mode="json"), "deleted.toml"))
    assert again == config


def test_a_single_stage_with_a_recipe_is_repeated_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('actor_model = "m"\n[sft]\nepochs = 2\n')
    config = resolve([("mine.toml", read_recipe("mine.toml")), ("command line", {"stages": ["sft"], "seed": 3})])
    assert repeated(config.model_dump(mode="json"), "mine.toml") == ["sft", "mine.toml", "--seed", "3"]


@pytest.mark.parametrize("done", [("sft",), ("sft", "reward")])
def test_the_next_stage_is_one_word_per_path(tmp_path, done):
    run = finished(Config(actor_model="m", stages=done), tmp_path / "it's $HOME", "defaults")
    run.manifest.stages = {stage: StageEntry() for stage in done}
    ((_, line),) = next_commands(run)
    words = shlex.split(line)
    assert f"{tmp_path}/it's $HOME/sft/model" in words
    assert (f"{tmp_path}/it's $HOME/reward/model" in words) == ("reward" in done)
