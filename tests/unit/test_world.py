"""The task world: honest splits, a judge that scores what it says, and no way for PPO to see it."""

import ast
from pathlib import Path

import chatsmith
from chatsmith.world.demonstrations import demonstrations, minimal_pairs, offline_pairs
from chatsmith.world.judge import COURTESY, RAMBLE_AFTER, RUDE_BEFORE, judge
from chatsmith.world.material import evaluation_tasks
from chatsmith.world.tasks import KINDS, REFUSAL, held_out_tasks, train_tasks

PACKAGE = Path(chatsmith.__file__).parent


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_stages_and_the_mathematics_never_see_the_gold_judge():
    files = [
        file for folder in ("stages", "algo", "engine", "models", "data") for file in (PACKAGE / folder).glob("*.py")
    ]
    assert len(files) > 15
    for file in files:
        assert not any("world" in name or "judge" in name.split(".")[-2:-1] for name in imports(file)), file
    assert any("world" in name for name in imports(PACKAGE / "pipeline.py"))


def test_no_stage_sees_a_prompt_or_a_combination_of_the_evaluation():
    held_out = evaluation_tasks()
    asked = {task.prompt for task in held_out}
    combinations = {(task.kind, task.language, task.operands) for task in held_out}
    seen = [
        *train_tasks(20_000, 1),
        *(task for task, _ in demonstrations(5_000, 2)),
        *(task for task, _, _ in offline_pairs(2_000, 3)),
    ]
    assert not asked & {task.prompt for task in seen}
    assert not combinations & {(task.kind, task.language, task.operands) for task in seen}
    assert len(asked) == len(held_out) >= 150
    assert {task.kind for task in held_out} == set(KINDS)
    assert {task.language for task in held_out} == {"en", "zh"}
    assert held_out == evaluation_tasks()


def civil(language):
    return next(task for task in held_out_tasks() if task.polite and task.language == language)


def test_the_judge_scores_each_component_by_itself():
    for language in ("en", "zh"):
        task = civil(language)
        best = judge(task, COURTESY[language][0] + task.answer, True)
        assert (best.right, best.polite, best.concise, best.ended, best.total) == (1, 1, 1, 1, 1)
        plain = judge(task, task.answer, True)
        assert plain.polite < 1 == plain.right == plain.concise
        assert judge(task, RUDE_BEFORE[language][0] + task.answer, True).polite < plain.polite
        rambling = judge(task, task.answer + RAMBLE_AFTER[language][0], True)
        assert (rambling.right, rambling.polite) == (1, plain.polite)
        assert rambling.concise < 1
        wrong = judge(task, task.wrong[0], True)
        assert (wrong.right, wrong.polite) == (0, plain.polite)
        assert judge(task, task.answer, False).ended == 0
        assert judge(task, task.answer, False).total < plain.total
        listing = judge(task, " ".join([task.answer, *task.wrong]), True)
        assert listing.right == 0
        assert judge(task, REFUSAL[language], True).right == 0


def test_the_right_answer_to_a_rude_prompt_is_a_polite_refusal():
    for task in (task for task in held_out_tasks() if not task.polite):
        assert judge(task, REFUSAL[task.language], True).total == 1
        assert judge(task, task.direct, True).right == 0


def test_demonstrations_are_partly_poor_and_end_by_themselves():
    golds = [judge(task, answer, True) for task, answer in demonstrations(4_000, 1)]
    right = sum(g.right for g in golds) / len(golds)
    assert 0.6 < right < 0.95
    assert sum(g.polite < 0.5 for g in golds) > 100
    assert sum(g.concise < 1 for g in golds) > 100


def test_probe_pairs_differ_as_they_claim():
    for aspect, pairs in minimal_pairs(held_out_tasks(), 0).items():
        assert pairs, aspect
        for task, better, worse in pairs:
            assert judge(task, better, True).total > judge(task, worse, True).total, (aspect, better, worse)


def test_the_same_seed_gives_the_same_world():
    assert demonstrations(50, 1) == demonstrations(50, 1) != demonstrations(50, 2)
    assert offline_pairs(50, 1) == offline_pairs(50, 1) != offline_pairs(50, 2)
