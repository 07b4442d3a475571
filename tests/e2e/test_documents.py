"""What the documents say is true: commands run, keys, names and messages are those of the code."""

import ast
import inspect
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_endpoint import ScriptedEndpoint
from scripted_service import Served
from tiny import byte_tokenizer, tiny_reward_model

from chatsmith.cli import app, split_arguments
from chatsmith.config import Config
from chatsmith.data.formats import stages_of, to_record
from chatsmith.errors import ConfigError
from chatsmith.gold import GoldJudge, GoldScores
from chatsmith.models.reward import call, load_ready_reward
from chatsmith.resolve import builtin_recipes, known_keys, parse_overrides
from chatsmith.types import Message, Record, Sample
from chatsmith.world import evaluation
from chatsmith.world.material import evaluation_tasks

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "chatsmith"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PICTURE = "docs/report.png"
RUNS = ("runs/tiny-cpu", "runs/tiny-cpu-no-kl", "runs/mine")  # finished ones that the documents talk with and report on


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def code(text: str) -> list[str]:
    """What stands between single backticks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()


def without_environment(line: str) -> str:
    return re.sub(r"(^|\| )\.venv/bin/", r"\1", line)


CHATSMITH = {
    f"{page.name}-{index}": without_environment(line)
    for page in PAGES
    for index, line in enumerate(commands(page))
    if re.match(r"(echo \"[^\"]*\" \| )?chatsmith ", without_environment(line))
}


def verb(line: str) -> str:
    """The subcommand of a line that may begin with `echo "..." |`."""
    return line.rpartition("| ")[2].split()[1]


def cases(*verbs: str) -> list:
    return [pytest.param(line, id=id) for id, line in CHATSMITH.items() if verb(line) in verbs]


@pytest.fixture(scope="session")
def made() -> dict[str, Path]:
    """What is made once and used by several tests."""
    return {}


@pytest.fixture
def finished_run(made, chatsmith, model_directory, pairs, tmp_path_factory):
    """A small run with all stages; mixed training is on, so that every metric is there."""
    if not made:
        directory = tmp_path_factory.mktemp("finished") / "run"
        options = ("--run-dir", directory, "--force", "--rl.ptx_coef", "0.5")
        result = chatsmith(
            "train", "--actor-model", model_directory("llama"), "--data", pairs, f"ptx:{pairs}", *options
        )
        assert result.returncode == 0, result.stderr
        made["run"] = directory
    return made["run"]


@pytest.fixture
def desk(tmp_path, monkeypatch, model_directory, pairs):
    """A directory that holds what the documents' commands name; data sets and hub ids are local here."""
    monkeypatch.chdir(tmp_path)
    model = model_directory("llama")
    for name in ("MODEL", "facebook/opt-125m", "facebook/opt-1.3b", "facebook/opt-350m", "runs/a/sft/model"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(model)
    scorer = tiny_reward_model("llama")
    scorer.config.score_mean, scorer.config.score_std = 0.0, 1.0
    scorer.save_pretrained("runs/b/reward/model")
    byte_tokenizer().save_pretrained("runs/b/reward/model")
    records = [json.loads(line) for line in pairs.read_text().splitlines()]
    answered = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in records]
    asked = [{"prompt": row["prompt"], "expected": row["chosen"]} for row in records]
    sums = [
        {"question": f"What is {i} + 2?", "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}"} for i in range(len(records))
    ]
    told = {"instruction_id_list": ["punctuation:no_comma", "language:response_language"], "kwargs": [{}, {}]}
    for name, lines in {
        "gsm8k.jsonl": sums,
        "ifeval.jsonl": [{"prompt": row["prompt"]} | told for row in records],
        "demonstrations.jsonl": answered,
        "prompts.jsonl": asked,
        "Dahoas/rm-static/train.jsonl": records,
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("text.txt").write_text("Once there was a fox.\n")
    Path("seeds.jsonl").write_text('{"instruction": "Name three fruits."}\n')
    Path("self-instruct.jsonl").write_bytes(Path("demonstrations.jsonl").read_bytes())
    Path("rewards.py").write_text(blocks(README, "python")[0])
    Path("judge.py").write_text(blocks(ROOT / "docs" / "judge.md", "python")[0])
    Path("assistant.toml").write_text(blocks(README, "toml")[0])
    return tmp_path


@pytest.fixture
def desk_with_runs(desk, finished_run):
    """The same, with finished runs where the documents have them."""
    for name in RUNS:
        shutil.copytree(finished_run, name)
    return desk


def run(line: str) -> None:
    arguments = shlex.split(line)[1:]
    small = ["--data.held_out", "0.4", "--rl.max_new_tokens", "12"]  # the tiny model's context is short
    if arguments[0] in ("train", "sft", "label", "pairs", "reward", "rl"):
        arguments += small + ([] if "--dry-run" in arguments else ["--dry-run"])
    if arguments[0] == "data":
        arguments += small
    overrides, rest = split_arguments(arguments)
    assert not app(args=rest, obj=parse_overrides(overrides), standalone_mode=False)


@pytest.mark.parametrize("line", cases("train", "sft", "label", "pairs", "reward", "rl", "recipes"))
def test_every_training_command_of_the_documents_is_accepted(line, desk, capsys):
    before = sorted(desk.rglob("*"))
    if "math" in line:
        pytest.importorskip("math_verify")
    with Served(lambda batch: ([],)) as service:
        run(line.replace("http://localhost:8000/score", service.url))
    said = capsys.readouterr().out
    assert "tiny-cpu" in said or "nothing was written" in said or said == builtin_recipes()["tiny-cpu"]
    assert [path for path in sorted(desk.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize("line", cases("chat"))
def test_every_chat_of_the_documents_is_answered(line, desk_with_runs, capsys, monkeypatch):
    said, _, command = line.rpartition(" | ")
    question = shlex.split(said)[1] if said else "red cat"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{question}\n".encode()), encoding="utf-8"))
    run(command + " --max-new-tokens 4")
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("line", cases("data"))
def test_every_look_at_data_of_the_documents_finds_some(line, desk, capsys):
    run(line)
    said = capsys.readouterr().out
    assert "pairs.jsonl" in said and ("held out" in said if "check" in line else "⟦" in said or "--at" in line)


@pytest.mark.parametrize("line", cases("report"))
def test_every_report_of_the_documents_is_written(line, desk_with_runs, capsys):
    for page in desk_with_runs.glob("runs/*/report*.html"):
        page.unlink()
    run(line)
    page = Path(capsys.readouterr().out.strip())
    assert page.name == ("report-vs-tiny-cpu-no-kl.html" if "no-kl" in line else "report.html")
    assert "PPO" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("line", cases("runs"))
def test_every_list_of_runs_of_the_documents_is_shown(line, desk_with_runs, capsys):
    run(line)
    shown = capsys.readouterr().out
    for name in RUNS:
        assert Path(name).name in shown


@pytest.mark.parametrize("line", cases("bench"))
def test_every_bench_of_the_documents_measures_what_they_list(line, desk_with_runs, capsys):
    run(line + " --batch 2 --prompt-tokens 4 --answer-tokens 4")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    listed = {
        name for row in rows(section((ROOT / "docs" / "metrics.md").read_text(), "bench")) for name in code(row[0])
    }
    parts = {name for name, value in result.items() if isinstance(value, dict)}
    assert {name.split(".")[0] for name in listed} == set(result)
    assert {name for name in listed if "." in name} >= {f"step.{name}" for name in result["step"] if "share" in name}
    assert {name.split(".")[0] for name in listed if "." in name} <= parts


@pytest.mark.parametrize("line", cases("collect"))
def test_every_collection_of_the_documents_is_made_as_they_say(line, desk):
    pytest.importorskip("openai")
    Path("self-instruct.jsonl").unlink()
    with ScriptedEndpoint() as endpoint:
        run(re.sub(r"--endpoint \S+", f"--endpoint {endpoint.url}", line) + " -n 3")
    (output,) = (path for name in ("self-instruct", "english") if (path := desk / f"{name}.jsonl").exists())
    record = json.loads(output.read_text().splitlines()[-1])
    shown = json.loads(blocks(ROOT / "docs" / "collect.md", "json")[0])
    assert list(record) == list(shown)
    assert list(record["provenance"]) == list(shown["provenance"])
    assert stages_of(to_record(shown, "collect.md:1")) == ("sft", "rl")


def test_every_sentence_on_security_has_a_test_behind_it():
    page = (ROOT / "docs" / "security.md").read_text()
    listed = re.findall(r"\| \[test_\w+\.py\]\(\.\./(tests/\w+/test_\w+\.py)\) `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(listed) > 30
    for file, name in listed:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), (file, name)
    sentences = [row for row in rows(page) if row[0] != "what" and not row[0].startswith("---")]
    assert len(sentences) == len(listed) + 1, "only other libraries' caches are theirs to test"


def test_every_reason_to_drop_and_every_option_of_a_collection_is_listed():
    page = (ROOT / "docs" / "collect.md").read_text()
    listed = {name for row in rows(section(page, "What is dropped")) for name in code(row[0])}
    tree = ast.parse((PACKAGE / "collect" / "filters.py").read_text())
    returned = [
        part
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name.startswith("unfit_")
        for node in ast.walk(function)
        if isinstance(node, ast.Return)
        for part in ast.walk(node)
    ]
    said = {template(part) for part in returned} - {"", "not ", "not …"}
    assert listed == said | {"not English", "not Chinese", "near-duplicate", "malformed list"}
    (group,) = (group for group in app.registered_groups if group.name == "collect")
    (command,) = group.typer_instance.registered_commands
    options = {name for row in rows(page) for name in re.findall(r"--[a-z][a-z-]*", row[0])}
    assert {name.removeprefix("--").replace("-", "_") for name in options} == set(
        inspect.signature(command.callback).parameters
    )


def test_a_command_that_is_wrong_is_noticed(desk):
    with pytest.raises(ConfigError, match="kl_coef"):
        run("chatsmith train --actor-model MODEL --data pairs.jsonl --rl.kl_coeff 1")
    with pytest.raises(Exception, match="--no-such-option"):
        run("chatsmith train --no-such-option")


def test_the_documents_hold_commands_of_every_kind():
    tested = {
        "train",
        "sft",
        "label",
        "pairs",
        "reward",
        "rl",
        "recipes",
        "chat",
        "report",
        "runs",
        "bench",
        "collect",
        "data",
    }
    names = {command.callback.__name__ for command in app.registered_commands}
    assert set(map(verb, CHATSMITH.values())) == tested == names | {group.name for group in app.registered_groups}
    mentioned = [line for page in PAGES for line in commands(page) if "chatsmith " in without_environment(line)]
    assert len([line for line in mentioned if not re.match(r"(git|make|cd) ", line)]) == len(CHATSMITH)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {line.split()[1] for page in PAGES for line in commands(page) if line.startswith("make ")}
    assert "demo" in made
    assert made <= targets


def test_every_link_inside_the_repository_leads_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, anchor


def test_the_picture_of_the_readme_is_one():
    assert (ROOT / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert f"]({PICTURE})" in README.read_text(encoding="utf-8")


def test_every_file_and_function_that_the_documents_name_exists():
    for page in PAGES:
        for path, name in re.findall(
            r"`((?:chatsmith/)?[a-z_]+(?:/[a-z_]+)*\.py)(?::(\w+))?`", page.read_text(encoding="utf-8")
        ):
            if page.name == "coming-from.md" or path == "rewards.py":  # others' files, and the user's own
                continue
            candidates = [PACKAGE / path.removeprefix("chatsmith/"), ROOT / path, *PACKAGE.glob(f"*/{path}")]
            file = next((candidate for candidate in candidates if candidate.exists()), None)
            assert file is not None, f"{page.name}: {path}"
            assert not name or re.search(rf"^(def|class) {name}\b", file.read_text(), re.MULTILINE), f"{path}:{name}"


def test_the_configuration_page_is_what_the_code_says():
    sys.path.insert(0, str(ROOT / "docs"))
    from configuration import page

    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "make docs"
    listed = [code(row[0])[0] for row in rows(page()) if code(row[0])]
    assert sorted(listed) == sorted(known_keys())


def test_every_option_that_the_documents_name_is_a_key_of_the_configuration():
    keys = set(known_keys())
    groups = "|".join(sorted({key.split(".")[0] for key in keys if "." in key}))
    for page in PAGES:
        for name in code(page.read_text(encoding="utf-8")):
            match = re.match(rf"(?:--)?((?:{groups})\.[a-z_]+)(?![\w./(])", name)
            assert not match or match[1] in keys or match[1].endswith((".py", ".json", ".jsonl")), (
                f"{page.name}: {name}"
            )


def test_metrics_and_manifest_of_a_run_are_those_that_the_documents_list(finished_run):
    page = (ROOT / "docs" / "metrics.md").read_text()
    fields = {"task": evaluation.asked(evaluation_tasks()[0])}
    judged = Sample((Message("user", "?"),), "!", "stop", Record(fields=fields))
    for stage in ("sft", "reward", "rl"):
        lines = [json.loads(line) for line in (finished_run / stage / "metrics.jsonl").open()]
        written = {name.replace("reward/trained", "reward/<name>") for line in lines for name in line}
        listed = {name for row in rows(section(page, stage)) for name in code(row[0])}
        assert {name for name in listed if not name.startswith("gold/")} == written
        assert {name for name in listed if name.startswith("gold/")} == (
            {f"gold/{name}" for name in evaluation.gold([judged])[0]} if stage == "rl" else set()
        )

    contract = (ROOT / "docs" / "contract.md").read_text()
    named = set(code(contract))
    manifest = json.loads((finished_run / "manifest.json").read_text())
    report = manifest["stages"]["reward"]["report"]
    parts = [manifest, manifest["versions"], *manifest["data"], *manifest["stages"].values(), manifest["summary"]]
    parts += [manifest["stages"]["sft"]["report"], report, report["accuracy"], report["margins"]]
    parts += report["reliability"]
    parts += [manifest["stages"]["rl"]["report"], manifest["stages"]["rl"]["report"]["after"]]
    assert {key for part in parts for key in part} <= named
    top = section(contract, "manifest.json").partition("An entry of `data`")[0]
    assert {code(row[0])[0] for row in rows(top) if code(row[0])} == set(manifest)
    patterns = ("*.*", "*/*.jsonl", "rl/*/value_head.safetensors")
    for file in (file for pattern in patterns for file in finished_run.glob(pattern)):
        assert file.name in contract
    assert (finished_run / "report.html").exists()
    for name in ("samples", "answers"):
        line = json.loads((finished_run / "rl" / f"{name}.jsonl").read_text().splitlines()[0])
        assert set(line) <= named


def test_the_gold_figures_of_the_task_world_are_in_the_contract():
    prompt = (Message("user", "?"),)
    samples = [
        Sample(prompt, task.answer, "stop", Record(prompt, fields={"task": evaluation.asked(task)}))
        for task in evaluation_tasks()[:4]
    ]
    gold = GoldJudge("gold", evaluation.gold, Config(), ())
    scores = GoldScores([sample for sample in samples for _ in range(2)], gold(samples) * 2, gold(samples))
    summary = gold.summary(scores, scores)
    named = set(code((ROOT / "docs" / "contract.md").read_text()))
    assert {*summary, *summary["gold_components"]} <= named


def test_every_row_of_the_format_table_is_read_and_serves_what_it_says():
    table = [row for row in rows((ROOT / "docs" / "data.md").read_text()) if row[1:] and row[1].startswith("`{")]
    assert len(table) >= 17
    for _, example, serves in table:
        record = to_record(json.loads(code(example)[0]), "data.md:1")
        assert ", ".join(stages_of(record)) == serves, example


def test_the_reward_of_the_readme_judges_a_sample(desk, monkeypatch):
    sizes = {"max_tokens_per_pass": 1, "max_new_tokens": 1}
    reward = load_ready_reward("rewards.py:correct", 1.0, name=None, dtype=None, device=None, **sizes)
    question = (Message("user", "What is 2 + 3?"),)
    given = Record(prompt=question, fields={"prompt": question[0].content, "expected": "5"})
    samples = [
        Sample(question, "It is 5.", "stop", given),
        Sample(question, "It is 6.", "stop", given),
        Sample(question, "It is 5.", "stop", Record(prompt=question)),
    ]
    assert call(reward, samples)[:2] == [1.0, 0.0]
    assert reward.function(samples)[2] is None


def test_the_blocks_of_the_readme_that_use_python_run(desk_with_runs, monkeypatch):
    _, talk, loop = blocks(README, "python")
    material = Path("runs/tiny-cpu/data")
    material.mkdir()
    shutil.copy("prompts.jsonl", material)
    monkeypatch.syspath_prepend(ROOT / "examples")
    exec(talk, {})
    assert Path("my-assistant/config.json").exists()
    short = loop.replace("steps=20", "steps=1").replace("range(20)", "range(1)")
    assert short.count("20") == 0
    exec(short, {})
    assert Path("mine/config.json").exists()


SAYING = (
    *(
        "verdicts.py",
        "stages/*.py",
        "models/arguments.py",
        "models/lm.py",
        "models/load.py",
        "models/weights.py",
        "models/location.py",
        "models/reward.py",
        "data/chat.py",
        "engine/text.py",
    ),
    *("intake.py", "gold.py", "pipeline.py", "runs/run.py", "runs/runtime.py"),
)


def template(node: ast.AST | None) -> str:
    """What an expression says, with … for what is known only when it is said; "" if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "…" for part in node.values)
    return ""


def messages(tree: ast.AST) -> Iterator[str]:
    """What the code tells the user: errors, warnings, reasons."""
    for node in ast.walk(tree):
        said: list[ast.AST | None] = []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            said = list(node.exc.args)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            heard = node.func.attr in ("warn", "_say") or ast.unparse(node.func) in (
                "warnings.append",
                "problems.append",
                "found.append",
            )
            said = list(node.args[-1:]) if heard else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Verdict":
            failed = isinstance(node.args[0], ast.Constant) and node.args[0].value is False
            said = [node.args[1]] if failed else []
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "problem":
            said = [node.value]
        elif isinstance(node, ast.FunctionDef) and node.name == "title":
            said = []  # a heading
        elif isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "str":
            said = [part.value for part in ast.walk(node) if isinstance(part, ast.Return)]
        yield from filter(None, map(template, said))


def explained() -> list[str]:
    """The words that the page on troubleshooting explains: the first column of its tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    found = [words.replace("\\|", "|") for row in rows(page) if len(row) > 2 for words in code(row[0])]
    assert len(found) == len(set(found)) > 60
    return found


def test_every_verdict_warning_and_error_of_the_stages_is_explained():
    words = explained()
    said = {
        text for pattern in SAYING for file in PACKAGE.glob(pattern) for text in messages(ast.parse(file.read_text()))
    }
    assert len(said) > 60
    missing = [text for text in sorted(said) if not any(each in text for each in words)]
    assert missing == []


def test_what_is_explained_is_what_the_code_says():
    nodes = (node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text())))
    said = {text for node in nodes if (text := template(node))}
    assert [words for words in explained() if not any(words in text for text in said)] == []


def test_the_sections_of_the_report_that_the_documents_send_to_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    templates = "".join(file.read_text(encoding="utf-8") for file in (PACKAGE / "report").glob("*.*"))
    looked_at = [row[2] for row in rows(page) if len(row) == 4]
    named = {name for cell in looked_at for name in re.findall(r'"([A-Z][^"]*)"', cell)}
    assert len(named) > 15
    assert sorted(name for name in named if name not in templates) == []


def test_the_files_of_the_guided_tour_are_six():
    tour = section(README.read_text(encoding="utf-8"), "Read these files in this order").partition("```")[0]
    assert len(re.findall(r"^\d\. `(chatsmith/[^`]+)`", tour, re.MULTILINE)) == 6
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")} | {"recipes"}
    tree = re.findall(r"^  (\w+)/ ", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(tree) == folders - {"chatsmith"}
