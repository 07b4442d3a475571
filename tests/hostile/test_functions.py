"""Functions of users: they take nobody's place, and nothing of them runs that was not said before."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsmith.config import Config
from chatsmith.errors import ConfigError
from chatsmith.functions import load_function
from chatsmith.intake import functions
from chatsmith.resolve import read_recipe

CODE = """
import dataclasses, json, pickle
from pathlib import Path

@dataclasses.dataclass
class Point:
    x: int = {number}

def f(samples):
    return Point()

def fails(samples):
    raise ValueError("on this line")  # {number}
"""


@pytest.mark.parametrize("name", ["json", "torch", "rewards", "chatsmith", "a b", "__main__", "1.2"])
def test_a_file_takes_no_modules_place_not_even_that_of_its_namesake(tmp_path, name):
    before = dict(sys.modules)
    made = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / f"{name}.py"
        file.write_text(CODE.format(number=number))
        made.append(load_function(f"{file}:f", kind="reward"))
    assert {key: sys.modules[key] for key in before} == before
    assert [function([]).x for function in made] == [1, 2]
    for function in made:
        assert pickle.loads(pickle.dumps(function([]))) == function([])
        assert pickle.loads(pickle.dumps(function)) is function
    assert json.loads("[1]") == [1]


def test_a_traceback_shows_the_lines_of_the_file(tmp_path):
    import traceback

    (tmp_path / "json.py").write_text(CODE.format(number=7))
    with pytest.raises(ValueError, match="on this line") as error:
        load_function(f"{tmp_path}/json.py:fails", kind="reward")([])
    said = "".join(traceback.format_exception(error.value))
    assert 'raise ValueError("on this line")  # 7' in said
    assert f'{tmp_path}/json.py"' in said


def test_a_file_is_the_same_from_every_place(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(CODE.format(number=1))
    monkeypatch.chdir(tmp_path)
    names = {load_function(f"{path}:f", kind="reward").__module__ for path in ("a.py", "./a.py", tmp_path / "a.py")}
    assert len(names) == 1


def test_a_neighbour_that_is_not_found_is_a_clear_error(tmp_path):
    (tmp_path / "a.py").write_text("import neighbour_of_a\n")
    with pytest.raises(ConfigError, match=r"a\.py:f: cannot be imported: ModuleNotFoundError: No module named"):
        load_function(f"{tmp_path}/a.py:f", kind="reward")


def test_the_code_of_a_configuration_is_named():
    sources = ["a.jsonl", {"source": "b.jsonl", "function": "subprocess:getoutput"}, {"source": "c", "prompt": "{x}"}]
    rewards = ("trained", "r.py:f@0.5", "os:system", "runs/a/reward/model")
    config = Config.model_validate({"data": {"sources": sources}, "rl": {"rewards": rewards}})
    assert functions(config) == [
        "subprocess:getoutput (of the source b.jsonl)",
        "r.py:f (a reward)",
        "os:system (a reward)",
    ]
    assert functions(config.model_copy(update={"stages": ("sft",)})) == functions(config)[:1]


MARK = """
from pathlib import Path
Path({mark!r}).open("a").write("loaded ")
def f(row):
    return {{"prompt": row["q"], "answer": row["a"]}}
"""


@pytest.mark.parametrize("command", [("data", "check"), ("data", "show"), ("train", "--dry-run")])
def test_what_runs_is_said_before_it_runs(tmp_path, monkeypatch, capsys, command, model_directory):
    from chatsmith import functions as loading
    from chatsmith.cli import main

    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"q": f"What is {i}?", "a": f"It is {i}."}) + "\n" for i in range(40))
    )
    Path("code.py").write_text(MARK.format(mark=str(tmp_path / "data-ran")))
    Path("reward.py").write_text(MARK.format(mark=str(tmp_path / "reward-ran")))
    Path("r.toml").write_text(
        f'actor_model = "{model_directory()}"\nstages = ["sft", "rl"]\n[rl]\nrewards = ["reward.py:f"]\n'
        '[data]\nheld_out = 0.4\n[[data.sources]]\nsource = "rows.jsonl"\nfunction = "code.py:f"\n'
    )
    said, real = [], loading.load_function

    def watched(target, *, kind):
        said.append((target, capsys.readouterr().out))
        return real(target, kind=kind)

    monkeypatch.setattr("chatsmith.data.mapping.load_function", watched)
    recipe = ["r.toml"] if command[0] == "train" else ["--recipe", "r.toml"]
    monkeypatch.setattr(sys, "argv", ["chatsmith", *command, *recipe])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit):
        main()
    assert said[0][0] == "code.py:f"
    assert "runs your code: code.py:f (of the source rows.jsonl)" in said[0][1]
    is_run = command[0] == "train"
    assert f"{'runs your code' if is_run else 'does not run'}: reward.py:f (a reward)" in said[0][1]
    assert is_run or not (tmp_path / "reward-ran").exists()


@given(st.sampled_from(["tiny-cpuu", "defaults", "mine", "opt", "manifest.json"]))
def test_a_file_here_is_no_recipe_unless_it_is_named_as_one(name):
    import os
    import tempfile

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path(name).write_text("seed = 7\n")
            with pytest.raises(ConfigError, match="no recipe or TOML file"):
                read_recipe(name)
            assert read_recipe(f"./{name}") == {"seed": 7}
        finally:
            os.chdir(before)


def test_a_recipe_without_end_or_bottom_is_refused(tmp_path):
    for text in ("#" * (2 << 20), "a = " + "[" * 100_000):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"r\.toml: (longer than|not valid TOML)"):
            read_recipe(str(tmp_path / "r.toml"))
