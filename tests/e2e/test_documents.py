"""What the documents say is true: commands run, keys and names are those of the code."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_reward_model

from chatsmith.cli import app, split_arguments
from chatsmith.data.formats import stages_of, to_record
from chatsmith.errors import ConfigError
from chatsmith.models.reward import call, load_ready_reward
from chatsmith.resolve import builtin_recipes, known_keys, parse_overrides
from chatsmith.types import Message, Record, Sample
from chatsmith.world import evaluation
from chatsmith.world.judge import judge

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


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


CHATSMITH = [
    pytest.param(line.removeprefix(".venv/bin/"), id=f"{page.name}-{index}")
    for page in PAGES
    for index, line in enumerate(commands(page))
    if line.removeprefix(".venv/bin/").startswith("chatsmith ")
]


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
    for name, lines in {
        "demonstrations.jsonl": answered,
        "prompts.jsonl": asked,
        "Dahoas/rm-static/train.jsonl": records,
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("text.txt").write_text("Once there was a fox.\n")
    Path("rewards.py").write_text(blocks(README, "python")[0])
    Path("assistant.toml").write_text(blocks(README, "toml")[0])
    return tmp_path


def run(line: str) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] != "recipes":
        arguments += ["--data.held_out", "0.2", *([] if "--dry-run" in arguments else ["--dry-run"])]
    overrides, rest = split_arguments(arguments)
    app(args=rest, obj=parse_overrides(overrides), standalone_mode=False)


@pytest.mark.parametrize("line", CHATSMITH)
def test_every_chatsmith_command_of_the_documents_is_accepted(line, desk, capsys):
    before = sorted(desk.rglob("*"))
    run(line)
    said = capsys.readouterr().out
    assert "tiny-cpu" in said or "nothing was written" in said or said == builtin_recipes()["tiny-cpu"]
    assert [path for path in sorted(desk.rglob("*")) if "__pycache__" not in path.parts] == before


def test_a_command_that_is_wrong_is_noticed(desk):
    with pytest.raises(ConfigError, match="kl_coef"):
        run("chatsmith train --actor-model MODEL --data pairs.jsonl --rl.kl_coeff 1")
    with pytest.raises(Exception, match="--no-such-option"):
        run("chatsmith train --no-such-option")


def test_the_documents_hold_commands_of_every_kind():
    kinds = {parameter.values[0].split()[1] for parameter in CHATSMITH if len(parameter.values[0].split()) > 1}
    assert kinds == {"train", "sft", "reward", "rl", "recipes"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {line.split()[1] for page in PAGES for line in commands(page) if line.startswith("make ")}
    assert "demo" in made
    assert made <= targets


def test_every_link_inside_the_repository_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_and_function_that_the_documents_name_exists():
    for page in PAGES:
        for path, name in re.findall(
            r"`((?:chatsmith/)?[a-z_]+(?:/[a-z_]+)*\.py)(?::(\w+))?`", page.read_text(encoding="utf-8")
        ):
            if path == "rewards.py":  # the user's own
                continue
            file = ROOT / "chatsmith" / path.removeprefix("chatsmith/")
            assert file.exists(), f"{page.name}: {path}"
            assert not name or re.search(rf"^(def|class) {name}\b", file.read_text(), re.MULTILINE), f"{path}:{name}"


def test_the_configuration_page_is_what_the_code_says():
    sys.path.insert(0, str(ROOT / "docs"))
    from configuration import page

    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "make docs"
    listed = [code(row[0])[0] for row in rows(page()) if code(row[0])]
    assert sorted(listed) == sorted(known_keys())


def test_metrics_and_manifest_of_a_run_are_those_that_the_documents_list(chatsmith, model_directory, pairs, tmp_path):
    arguments = (
        "train",
        "--actor-model",
        model_directory("llama"),
        "--data",
        pairs,
        f"ptx:{pairs}",
        "--run-dir",
        "run",
    )
    result = chatsmith(*arguments, "--force", "--rl.ptx_coef", "0.5")
    assert result.returncode == 0, result.stderr

    page = (ROOT / "docs" / "metrics.md").read_text()
    for stage in ("sft", "reward", "rl"):
        lines = [json.loads(line) for line in (tmp_path / "run" / stage / "metrics.jsonl").open()]
        written = {name.replace("reward/trained", "reward/<name>") for line in lines for name in line}
        assert {code(row[0])[0] for row in rows(section(page, stage)) if code(row[0])} == written

    contract = (ROOT / "docs" / "contract.md").read_text()
    named = set(code(contract))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    report = manifest["stages"]["reward"]["report"]
    parts = [manifest, manifest["versions"], *manifest["data"], *manifest["stages"].values(), manifest["summary"]]
    parts += [manifest["stages"]["sft"]["report"], report, report["accuracy"], report["margins"]]
    parts += [manifest["stages"]["rl"]["report"], manifest["stages"]["rl"]["report"]["after"]]
    assert {key for part in parts for key in part} <= named
    top = section(contract, "manifest.json").partition("An entry of `data`")[0]
    assert {code(row[0])[0] for row in rows(top) if code(row[0])} == set(manifest)
    for file in [*(tmp_path / "run").glob("*/*.jsonl"), *(tmp_path / "run" / "rl").glob("*/value_head.safetensors")]:
        assert file.name in contract
    for name in ("samples", "answers"):
        line = json.loads((tmp_path / "run" / "rl" / f"{name}.jsonl").read_text().splitlines()[0])
        assert set(line) <= named


def test_the_gold_figures_of_the_task_world_are_in_the_contract():
    tasks = tuple(evaluation.evaluation_tasks()[:4])
    golds = [judge(task, task.answer, True) for task in tasks]
    scores = evaluation.GoldScores(tasks, [[gold] for gold in golds], golds, [task.answer for task in tasks])
    summary = evaluation.summary(scores, scores)
    named = set(code((ROOT / "docs" / "contract.md").read_text()))
    assert {*summary, *summary["gold_components"]} <= named


def test_every_row_of_the_format_table_is_read_and_serves_what_it_says():
    table = [row for row in rows((ROOT / "docs" / "data.md").read_text()) if row[1:] and row[1].startswith("`{")]
    assert len(table) >= 17
    for _, example, serves in table:
        record = to_record(json.loads(code(example)[0]), "data.md:1")
        assert ", ".join(stages_of(record)) == serves, example


def test_the_reward_of_the_readme_judges_a_sample(desk, monkeypatch):
    reward = load_ready_reward("rewards.py:correct", 1.0, name=None, dtype=None, device=None, max_tokens_per_pass=1)
    question = (Message("user", "What is 2 + 3?"),)
    given = Record(prompt=question, fields={"prompt": question[0].content, "expected": "5"})
    samples = [
        Sample(question, "It is 5.", "stop", given),
        Sample(question, "It is 6.", "stop", given),
        Sample(question, "It is 5.", "stop", Record(prompt=question)),
    ]
    assert call(reward, samples)[:2] == [1.0, 0.0]
    assert reward.function(samples)[2] is None
