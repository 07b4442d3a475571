"""The user's mistakes: one clear message, exit code 1, no traceback, nothing lost."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from tiny import SHARED, byte_tokenizer, require, tiny_model

from chatsmith.machine import out_of_memory


def refused(result, *parts, code=1):
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.fixture
def start(chatsmith, model_directory, tmp_path):
    def run(*arguments, **options):
        actor = ("--actor-model", model_directory("llama"))
        return chatsmith("train", *actor, "--run-dir", tmp_path / "run", *arguments, **options)

    return run


def test_usage_errors_exit_with_1(chatsmith):
    result = chatsmith("train", "--no-such-option", small=False)
    assert result.returncode == 1
    assert "--no-such-option" in result.stderr
    refused(chatsmith("train", "--only", "sfd"), 'no stage "sfd"')
    refused(chatsmith("train", "--rl.kl_coeff", "1"), 'did you mean "rl.kl_coef"')


def test_a_model_or_data_for_the_task_world_is_refused_and_not_ignored(chatsmith, pairs, model_directory):
    refused(chatsmith("train", "--data", pairs), "--data: a recipe with a [world] group")
    refused(chatsmith("train", "tiny-cpu", "--actor-model", model_directory("llama")), "--actor-model: a recipe")


def test_a_broken_json_line_is_named_and_can_be_skipped(start, pairs, tmp_path):
    text = pairs.read_text().splitlines()
    text[6] = text[6][:-4]
    pairs.write_text("\n".join(text) + "\n")
    refused(start("--data", pairs, "--dry-run"), f"{pairs}:7", "--data.on_error skip")
    skipped = start("--data", pairs, "--data.on_error", "skip", "--only", "sft", "--force")
    assert skipped.returncode == 0, skipped.stderr
    (entry,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert entry["records"] == 119
    assert [dropped["origin"] for dropped in entry["dropped"]] == [f"{pairs}:7"]


def test_real_broken_lines_are_named(start):
    file = require(SHARED / "data" / "instruction-wild" / "user_2.jsonl")
    refused(start("--data", f"rl:{file}", "--dry-run"), f"{file}:", "--data.on_error skip")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty"]),
        ('{"prompt": "a", "chosen": "b"}\n', ["bad.jsonl:1", "rejected"]),
        ('{"prompt": 3, "chosen": "b", "rejected": "c"}\n', ["bad.jsonl:1", "prompt"]),
        ('["a", "b"]\n', ["bad.jsonl"]),
    ],
)
def test_bad_files_are_named_with_their_line(start, tmp_path, content, parts):
    (tmp_path / "bad.jsonl").write_text(content)
    refused(start("--data", "bad.jsonl", "--dry-run"), *parts)


def test_a_missing_file_and_an_unreachable_hub_set_name_data(start):
    refused(start("--data", "absent.jsonl", "--dry-run"), "absent.jsonl")
    refused(start("--data", "Dahoas/rm-static", "--dry-run"), "--data", "Dahoas/rm-static")


def test_no_data_of_the_hub_is_meant_silently(start, chatsmith, tmp_path, model_directory):
    for dry in ("--dry-run", "--no-dry-run"):
        refused(start(dry, small=False), "no data to train on: give --data")
    (tmp_path / "mine.toml").write_text(f'actor_model = "{model_directory("llama")}"\n[data]\nsources = []\n')
    refused(chatsmith("train", "mine.toml", small=False), "no data to train on: give --data")
    refused(chatsmith("sft", "mine.toml", small=False), "no data to train on: give --data")


def test_a_single_stage_takes_the_model_of_its_recipe(chatsmith, tmp_path, pairs, model_directory):
    lines = [f'actor_model = "{model_directory("llama")}"', f'data.sources = ["{pairs}"]', 'rl.rewards = ["mine.py:f"]']
    (tmp_path / "mine.toml").write_text("\n".join(lines) + "\n")
    (tmp_path / "mine.py").write_text("def f(samples):\n    return [0.0 for s in samples]\n")
    for stage in ("sft", "reward", "rl"):
        result = chatsmith(stage, "mine.toml", "--dry-run")
        assert result.returncode == 0, result.stderr
        assert f"stages: {stage};" in result.stdout
        refused(chatsmith(stage, "--data", pairs, "--dry-run"), "no model to train: give --actor-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_here_is_refused_before_anything_is_written(start, chatsmith, pairs, tmp_path):
    for dry in ("--dry-run", "--no-dry-run"):
        refused(start("--data", pairs, "--engine.device", "cuda", dry, small=False), "torch finds no CUDA device")
        refused(chatsmith("train", "--engine.device", "cuda", dry, small=False), "torch finds no CUDA device")
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


def test_a_model_without_tokenizer_or_that_is_none_is_refused(chatsmith, pairs, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "bare")
    refused(chatsmith("train", "--actor-model", "bare", "--data", pairs, "--dry-run"), "no tokenizer here")
    (tmp_path / "empty").mkdir()
    refused(chatsmith("train", "--actor-model", "empty", "--data", pairs, "--dry-run"), "config.json is missing")


def test_prompts_longer_than_the_context_are_counted_and_none_left_is_an_error(
    start, chatsmith, model_directory, tmp_path
):
    rows = [{"prompt": "long " * 200 + str(i), "chosen": "a", "rejected": "b"} for i in range(60)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(
        start("--data", "long.jsonl"), "prompt and answer together may have 96 tokens", "none of the prompts has room"
    )
    alone = chatsmith("sft", "--actor-model", model_directory("llama"), "--data", "long.jsonl", "--run-dir", "sft")
    refused(alone, "sft: no usable record", "have at most 96 tokens")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("return [1 / 0 for s in samples]", "raised ZeroDivisionError"),
        ("return [float('nan') for s in samples]", "no finite number to 100%"),
        ("return 1", "returned int"),
    ],
)
def test_a_broken_reward_function_is_named(start, pairs, tmp_path, body, part):
    (tmp_path / "mine.py").write_text(f"def f(samples):\n    {body}\n")
    result = start("--data", pairs, "--reward", "mine.py:f", "--force")
    refused(result, "reward 'f'", part)


def test_a_directory_that_is_no_run_is_left_alone(start, pairs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(start("--data", pairs), "is no run of chatsmith")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_is_one_error_and_what_was_saved_stays(command, model_directory, pairs, tmp_path):
    """A limit on file size stands for a full disk: writes past it fail in the same place."""
    arguments = command(
        *("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", tmp_path / "run"),
        *("--force", "--engine.save_every_s", "0"),
    )
    shell = f"ulimit -f 64; trap '' XFSZ; exec {' '.join(arguments)}"  # blocks of 1 KiB
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=200)
    refused(result, "cannot be written", "type the same command again")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr


def test_a_language_model_is_no_reward(start, pairs, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    refused(start("--data", pairs, "--reward", "lm", "--dry-run"), "not a reward model", "--reward-model")


def test_running_out_of_memory_is_told_from_a_bug():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_settings_of_stages_that_run_anew_may_change_and_no_others(chatsmith, model_directory, pairs, tmp_path):
    arguments = ("train", "--actor-model", model_directory("llama"), "--run-dir", "run", "--only", "sft", "--force")
    assert chatsmith(*arguments, "--data", pairs).returncode == 0
    other = tmp_path / "other.jsonl"
    other.write_text(pairs.read_text().replace("red", "green"))
    refused = chatsmith(*arguments, "--data", other)
    assert refused.returncode == 1
    assert "run anew from the first stage that they enter: --from sft" in refused.stderr
    refused = chatsmith(*arguments, "--data", pairs, "--seed", "9", "--from", "sft")
    assert "seed (1 there, 9 here)" in refused.stderr
    assert "--from" not in refused.stderr
    both = chatsmith(*arguments, "--data", other, f"sft:{pairs}", "--from", "sft")
    assert both.returncode == 0, both.stderr
    base = chatsmith(*arguments[:5], "--reward-model", model_directory("gpt2"), "--data", other, f"sft:{pairs}")
    assert "--from reward" in base.stderr


def test_data_that_changed_while_its_first_stage_was_interrupted_is_refused(command, model_directory, pairs, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(pairs.read_text())
    arguments = [
        "train",
        "--actor-model",
        model_directory("llama"),
        "--data",
        data,
        "--run-dir",
        "run",
        "--sft.epochs",
        200,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    full = [*command(*arguments, "--only", "sft"), "--sft.epochs", "200"]
    process = subprocess.Popen(full, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = tmp_path / "run" / "sft" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    data.write_text(pairs.read_text().replace("red", "green"))
    again = subprocess.run(full, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    refused(again, "RunError", "is not what it was when this run began")


def test_a_configuration_is_refused_by_commands_that_take_none(chatsmith):
    refused(chatsmith("runs", "--rl.kl_coef", "0.1", small=False), "--rl.kl_coef", "takes no configuration")
    assert chatsmith("runs", small=False).returncode == 0


def test_a_dry_run_counts_steps_and_refuses_prompts_without_room_for_an_answer(chatsmith, model_directory, pairs):
    arguments = ("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", "run", "--dry-run")
    said = chatsmith(*arguments).stdout
    assert "sft: 17 records to train on, 13 held out; steps: 5 of 8; about " in said
    assert "steps: 3 of 16; at most " in said
    shorter = ("--data.held_out", "0.4", "--data.max_tokens", "36", "--rl.max_new_tokens", "4", "--sft.batch", "8")
    said = chatsmith(*arguments, *shorter, small=False).stdout
    assert "sft: 14 records to train on, 13 held out (3 longer than 36 tokens left out); steps: 2 of 8; " in said
    long = chatsmith(*arguments, "--data.held_out", "0.2", "--rl.max_new_tokens", "255", small=False)
    refused(long, "none of the prompts has room", "rl.max_new_tokens = 255")


def test_too_few_held_out_prompts_are_refused_before_any_stage_trains(chatsmith, model_directory, pairs, tmp_path):
    options = ("--data.held_out", "0.2", "--rl.max_new_tokens", "12", "--engine.device", "cpu", "--run-dir", "run")
    for verb, data in (("train", pairs), ("rl", f"rl:{pairs}@0.5")):
        reward = ("--reward", "builtins:len") if verb == "rl" else ()
        count = ("--data.held_out", "0.1") if verb == "rl" else ()
        arguments = (verb, "--actor-model", model_directory("llama"), "--data", data, *options, *reward, *count)
        for more in (("--dry-run",), ()):
            refused(chatsmith(*arguments, *more, small=False), "held-out prompts", "from 16 on. Raise --data.held_out")
        assert not (tmp_path / "run").exists()


def test_a_report_into_a_directory_is_refused(chatsmith, model_directory, pairs, tmp_path):
    arguments = ("train", "--actor-model", model_directory("llama"), "--data", pairs, "--run-dir", "run", "--force")
    result = chatsmith(*arguments, "--only", "sft")
    assert result.returncode == 0
    refused(chatsmith("report", "run", "--output", tmp_path, small=False), "a directory. Give --output a file")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    again = chatsmith(*arguments, "--only", "sft")  # a report that cannot be written changes no outcome
    assert again.returncode == 0
    assert "no report: " in again.stdout
