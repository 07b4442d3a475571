"""Imports run one way: cli, pipeline, stages, parts, nouns."""

import ast
from pathlib import Path

import chatsmith
from chatsmith.config import GROUPS, STAGES
from chatsmith.stages.table import BY_NAME

PACKAGE = Path(chatsmith.__file__).parent
# what each part may import from chatsmith, besides itself
ALLOWED = {
    "algo": {"types"},
    "files": {"errors", "machine", "screen"},
    "screen": {"stages", "runs", "verdicts"},  # what it shows of a stage
    "runs": {
        "__version__",
        "errors",
        "config",
        "machine",
        "files",
        "screen",
        "stages",
        "card",
        "assistant",
        "data",
        "gold",
        "verdicts",
    },
    "cpu": {"files", "screen", "models"},  # of models the one layer whose kernel it has
    "engine": {"types", "errors", "seeds", "models", "cpu", "files", "data"},
    "data": {"types", "errors", "seeds", "config", "functions", "machine", "files", "screen"},
    "rewards": {"types", "errors", "files", "screen", "algo"},
    "models": {"types", "errors", "seeds", "functions", "machine", "files", "screen", "data", "cpu", "rewards"},
    "stages": {
        *("types", "errors", "seeds", "config", "evaluate", "assistant"),
        *("files", "algo", "engine", "data", "models", "rewards"),
        *("runs", "intake", "verdicts"),  # a stage's own part of a run
    },
    "collect": {"types", "errors", "seeds", "data", "files", "screen", "runs"},
    "inspection": {
        *("evaluate", "types", "errors", "seeds", "config", "resolve", "intake"),
        *("algo", "data", "engine", "models", "stages", "files", "screen"),
    },
    "report": {"stages", "errors", "config", "resolve", "evaluate", "files", "screen", "runs"},
}


def imported(file: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chatsmith."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "chatsmith":
            parts |= {alias.name for alias in node.names}
    return parts


def test_every_part_imports_only_what_stands_below_it():
    for part, allowed in ALLOWED.items():
        files = list((PACKAGE / part).glob("*.py"))
        assert len(files) >= 3
        for file in files:
            door = {"engine"} if file == PACKAGE / "models" / "lm.py" else set()  # it tries what stands above it
            assert imported(file) <= allowed | {part} | door, file


def test_a_report_knows_of_the_stages_their_table_alone():
    for file in (PACKAGE / "report").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert text.count("chatsmith.stages") == text.count("chatsmith.stages.table"), file


def test_the_world_imports_nothing_from_the_stages_but_to_be_asked():
    for name in ("tasks", "judge", "demonstrations", "model"):
        assert imported(PACKAGE / "world" / f"{name}.py") <= {"world"}


def test_what_a_task_world_asks_for_is_made_ordinary_in_one_room():
    asking = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "world" and "config" in ast.unparse(node).lower()
    }
    # a model or data beside it, a look at what is not there yet, and runs that have been
    others = {"intake.py", "inspection/commands.py", "chat.py", "report/sections.py"}
    assert asking == {"world/material.py", *others}


def test_a_stage_is_a_file_an_entry_and_a_group_of_settings():
    assert tuple(BY_NAME) == STAGES
    for name in BY_NAME:
        work = BY_NAME[name].work
        assert work.__name__ == f"chatsmith.stages.{name}" and work.run and work.check
        assert name in GROUPS and name in BY_NAME[name].enters
        assert BY_NAME[name].takes is None or all((work.total_steps, work.step_size, work.measure))


def test_datasets_is_imported_only_where_it_reads():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "datasets" for name in names), file


def test_code_that_comes_with_a_model_is_never_trusted():
    for file in PACKAGE.rglob("*.py"):
        assert "trust_remote_code=True" not in file.read_text(encoding="utf-8"), file


def test_no_reward_runs_what_a_model_writes():
    for file in (PACKAGE / "rewards").glob("*.py"):
        calls = [
            node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        assert not {ast.unparse(call) for call in calls} & {"eval", "exec", "compile", "os.system"}, file
        begun = [call for call in calls if ast.unparse(call).startswith("subprocess.")]
        assert len(begun) == (file.name == "worker.py"), file  # which runs functions of this package


def test_few_files_ask_for_a_stage_by_its_name():
    """`reward` and `label` are left aside: they are words for much else."""
    names = set(STAGES) - {"reward", "label"}
    asking = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert len(asking) <= 15, sorted(asking)
