"""How much of the house one enters to follow a step of stage 3: what is misplaced shows as a room more."""

import sys
from contextlib import contextmanager
from pathlib import Path

from tiny import byte_tokenizer, tiny_model

import chatsmith
from chatsmith.assistant import load
from chatsmith.config import Config, RlConfig
from chatsmith.models.reward import Reward, critic_for
from chatsmith.runs.runtime import StageRun, StopSignals
from chatsmith.stages.rl import train_rl
from chatsmith.stages.rollout import encode_questions
from chatsmith.types import Message, Record

PACKAGE = Path(chatsmith.__file__).parent
ROOMS, FILES = 12, 40


@contextmanager
def entered(found: set[str]):
    """The files of the package of which a function is called inside, but for those that only define things."""

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name != "<module>":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


class Unseen:
    """A stage's progress where there is no screen."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def resume(self, past): ...

    def update(self, step, metrics): ...

    def answers(self, rows): ...

    def warn(self, text): ...


def test_a_step_of_stage_3_is_followed_through_few_rooms_and_files(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    policy = load(tmp_path / "model", device="cpu")
    settings = {"rollouts": 8, "steps": 2, "minibatches": 2, "max_new_tokens": 8, "warmup": 0.0, "ptx_coef": 0.0}
    config = Config(rl=RlConfig(**settings))
    records = [Record(prompt=(Message("user", f"question {number}"),)) for number in range(40)]
    prompts = encode_questions(policy.tokenizer, records, stops=policy.stops, max_tokens=200)
    rewards = [Reward("length", lambda samples: [float(len(sample.answer)) for sample in samples], 1.0)]
    critic = critic_for(policy.model, policy.tokenizer, rewards, max_tokens=policy.max_tokens)
    found: set[str] = set()
    with StopSignals() as stop:
        run = StageRun(tmp_path / "rl", save_every_s=0, stop=stop, show=lambda total: Unseen())
        with entered(found):
            report, _ = train_rl(policy, critic, prompts, prompts.first(16), rewards, config, run)
    assert report.steps == 2
    assert (tmp_path / "rl" / "checkpoint.pt").exists()
    assert {"stages/rl.py", "stages/policy.py", "engine/engine.py", "algo/losses.py"} <= found, "it counts"
    rooms = {path.split("/")[0] for path in found}
    assert len(rooms) <= ROOMS, " ".join(sorted(rooms))
    assert len(found) <= FILES, " ".join(sorted(found))
