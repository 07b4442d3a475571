"""Every tripwire is tripped here, and stays silent where nothing is wrong."""

import json

import pytest
import torch
from tiny import byte_tokenizer, saved_model, tiny_model, tiny_reward_model

from chatsmith.config import Config
from chatsmith.data.chat import DEFAULT_TEMPLATE, PAD_TOKEN, oddities, prepare_tokenizer
from chatsmith.errors import ModelError, RunError
from chatsmith.files.checkpoint import read_jsonl, save_checkpoint
from chatsmith.models.load import load_actor, load_reward_model, load_tokenizer, save_model, tokenizer_oddities
from chatsmith.runs.runtime import CHECKPOINT_FORMAT, StageRun, StopSignals
from chatsmith.stages.tripwires import Tripwires

HEALTHY = {
    "rl/answer_length": 20.0,
    "rl/truncation_rate": 0.1,
    "rl/reward_std": 0.5,
    "rl/reward_mean": 0.2,
    "rl/kl": 0.05,
    "rl/entropy": 1.0,
}


def said(*steps: dict, **rl) -> list[str]:
    """What the tripwires say of steps whose metrics differ from healthy ones as given."""
    warnings: list[str] = []
    tripwires = Tripwires(Config(rl=rl), warnings.append)
    for changes in steps:
        tripwires.check(HEALTHY | changes)
    return warnings


def test_a_healthy_run_is_not_warned_of_anything():
    assert said({}, {}, {}, {}, {}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl/truncation_rate": 1.0}, "all answers are cut off"),
        ({"rl/kl": 1.5}, "KL of 1.50 nats per token"),
        ({"rl/entropy": 0.001}, "entropy fell below"),
        ({"rl/answer_length": 100.0}, "5.0 times as long"),
        ({"rl/answer_length": 2.0}, "0.1 times as long"),
    ],
)
def test_what_leaves_its_bounds_is_named_once_with_its_step(changes, words):
    (warning,) = said({}, {}, changes, changes)
    assert warning.startswith("step 2: ")
    assert words in warning


def test_prompts_whose_answers_are_never_told_apart_are_named_where_that_is_all_there_is_to_learn_from():
    equal, some = {"rl/equal_groups": 1.0}, {"rl/equal_groups": 0.9}
    (warning,) = said(equal, equal, equal, equal, algorithm="rloo")
    assert warning.startswith("step 2: in 3 steps all answers to a prompt got the same reward")
    assert said(equal, equal, some, equal, algorithm="rloo") == []
    assert said(equal, equal, equal) == []  # a critic compares with more than the group


def test_a_step_that_could_not_be_filled_is_named_once():
    short = {"rl/answers": 24.0, "rl/refills": 3.0}
    (warning,) = said(short, short, algorithm="dapo", rollouts=64)
    assert warning.startswith("step 0: after 3 refills (rl.max_refills) 24 of 64 answers")
    assert said({"rl/answers": 64.0, "rl/refills": 3.0}, algorithm="dapo", rollouts=64) == []
    assert said({"rl/answers": 24.0, "rl/refills": 0.0}, algorithm="dapo", rollouts=64, max_refills=0) == []


def test_a_reward_that_never_varies_is_named_and_rewards_that_differ_between_steps_are_not():
    constant = {"rl/reward_std": 0.0, "rl/reward_mean": -1.0}
    (warning,) = said(constant, constant, constant, constant)
    assert "every answer of 3 steps got the same reward, -1.000" in warning
    assert said(constant, {}, constant, constant) == []
    one_prompt_per_step = [{"rl/reward_std": 0.0, "rl/reward_mean": float(step)} for step in range(6)]
    assert said(*one_prompt_per_step) == []


def test_a_resumed_run_remembers_what_was_said():
    warnings: list[str] = []
    first = Tripwires(Config(), warnings.append)
    first.check(HEALTHY | {"rl/kl": 2.0})
    second = Tripwires(Config(), warnings.append)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.check(HEALTHY | {"rl/kl": 2.0, "rl/answer_length": 90.0})
    assert [text.split(":")[0] for text in warnings] == ["step 0", "step 1"]
    assert "4.5 times as long" in warnings[1]


def test_a_pad_token_that_is_eos_is_named_and_replaced():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert oddities(tokenizer) == []
    tokenizer.pad_token = tokenizer.eos_token
    (oddity,) = oddities(tokenizer)
    assert "pads with EOS" in oddity
    prepare_tokenizer(tokenizer, "test")
    assert tokenizer.pad_token == PAD_TOKEN
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_template_without_bos_or_with_two_is_named():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + DEFAULT_TEMPLATE
    assert oddities(tokenizer) == []
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + DEFAULT_TEMPLATE
    assert "BOS twice" in oddities(tokenizer)[0]
    tokenizer.chat_template = DEFAULT_TEMPLATE
    expected = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert any("leaves out BOS" in oddity for oddity in oddities(tokenizer)) == expected


def test_oddities_are_those_of_the_tokenizer_as_it_lies_there(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert any("pads with EOS" in oddity for oddity in tokenizer_oddities(str(tmp_path)))


def save(directory, model):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    directory.mkdir(exist_ok=True)
    save_model(model, tokenizer, directory, stops=(2,), card="")
    return tokenizer


def load(directory, loader=load_actor):
    tokenizer = load_tokenizer(str(directory))
    return loader(str(directory), tokenizer, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("build", "loader"), [(tiny_model, load_actor), (tiny_reward_model, load_reward_model)], ids=["actor", "reward"]
)
def test_a_template_or_vocabulary_other_than_in_training_is_refused(build, loader, tmp_path):
    tokenizer = save(tmp_path, build("llama"))
    load(tmp_path, loader)

    tokenizer.chat_template = tokenizer.chat_template.replace("Human", "User")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the chat template in this directory is not the one"):
        load(tmp_path, loader)

    other = byte_tokenizer()
    prepare_tokenizer(other, "test")
    other.add_tokens(["<another>"])
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the vocabulary in this directory"):
        load(tmp_path, loader)

    config = json.loads((tmp_path / "config.json").read_text())
    del config["vocabulary_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path, loader)  # meant so


def test_line_ends_of_another_system_are_no_other_template(tmp_path):
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, "test")
    tokenizer.chat_template = tokenizer.chat_template + "\r\n"
    save_model(tiny_model("llama"), tokenizer, tmp_path, stops=(2,), card="")
    load(tmp_path)


def test_models_from_elsewhere_have_no_fingerprints_and_load(tmp_path):
    load(saved_model(tmp_path, "llama"))


class Spoken:
    """A display that only remembers what it is warned of."""

    def __init__(self, warned):
        self.warn = warned.append

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, step, metrics):
        pass

    def answers(self, rows):
        pass


def stage_run(directory, warned, save_every_s=1e9):
    return StageRun(directory, save_every_s=save_every_s, stop=StopSignals(), show=lambda total: Spoken(warned))


def test_a_skipped_step_leaves_its_batch_and_a_warning_that_a_resumed_run_still_has(tmp_path):
    warned: list[str] = []
    run = stage_run(tmp_path / "sft", warned)
    run.warn("before the first step")
    run.resume()
    for step in run.steps(0, 3):
        run.log(step, {"sft/loss": 1.0})
        if step == 1:
            run.skipped("the gradient is not finite (norm nan)", ["one text", "another"])
            run.warn("the same")
            run.warn("the same")
    kept = (tmp_path / "sft" / "skipped-1.txt").read_text()
    assert kept == "==== the gradient is not finite (norm nan)\n\none text\n\n----\n\nanother\n\n"
    assert warned == run.warnings()
    assert len(warned) == 3
    assert warned[0] == "before the first step"
    assert "step 1 was skipped: the gradient is not finite" in warned[1]
    assert "sft/skipped-1.txt" in warned[1]

    fresh = stage_run(tmp_path / "sft", [])
    fresh.resume()  # without a checkpoint everything that happened in steps is forgotten
    assert fresh.warnings() == ["before the first step"]
    assert fresh.metrics() == []


def test_answers_with_unicode_line_ends_survive_a_resume(tmp_path):
    run = stage_run(tmp_path / "rl", [])
    run.resume()
    for step in run.steps(0, 1):
        run.log_answers(step, [{"prompt": "a\u2028b\x85c", "answer": "d"}])
        run.warn("e\u2029f")
    assert run.warnings() == ["e\u2029f"]
    save_checkpoint(tmp_path / "rl" / "checkpoint.pt", {"format": CHECKPOINT_FORMAT, "step": 0, "seconds": 1.0})
    again = stage_run(tmp_path / "rl", [])
    with (tmp_path / "rl" / "warnings.jsonl").open("a") as file:
        file.write('{"step": 0, "warn')  # killed while it wrote
    again.resume()
    assert again.warnings() == ["e\u2029f"]
    assert read_jsonl(tmp_path / "rl" / "answers.jsonl")[0]["prompt"] == "a\u2028b\x85c"


def test_a_stage_that_an_older_version_began_begins_anew_and_says_so(tmp_path):
    run = stage_run(tmp_path / "sft", [])
    run.resume()
    for step in run.steps(0, 2):
        run.log(step, {"sft/loss": 1.0})
    save_checkpoint(tmp_path / "sft" / "checkpoint.pt", {"format": CHECKPOINT_FORMAT - 1, "step": 1, "seconds": 1.0})
    again = stage_run(tmp_path / "sft", [])
    assert again.resume() is None
    assert again.metrics() == []
    assert "begins anew" in again.warnings()[0]


def test_the_time_between_checkpoints_grows_with_what_they_take(tmp_path, monkeypatch):
    run = stage_run(tmp_path / "sft", [], save_every_s=60.0)
    now, saved = [1000.0], []
    monkeypatch.setattr("chatsmith.runs.runtime.time.monotonic", lambda: now[0])

    def save(_path, state):
        saved.append(now[0])
        now[0] += 30.0

    monkeypatch.setattr("chatsmith.runs.runtime.save_checkpoint", save)
    run._saved_at = 1000.0
    for step in range(200):
        now[0] += 10.0
        run.checkpoint(step, {})
    assert saved[0] == 1060.0  # nobody knew yet what it takes
    assert saved[1] - (saved[0] + 30.0) == 600.0  # 20 times half a minute


def test_a_checkpoint_of_another_version_is_refused_and_not_called_a_bug(tmp_path):
    run = stage_run(tmp_path / "sft", [])
    save_checkpoint(tmp_path / "sft" / "checkpoint.pt", {"step": 0, "seconds": 1.0})
    with pytest.raises(RunError, match="Run the stage anew: --from sft"):
        run.resume()
