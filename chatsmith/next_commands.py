"""What a person may want to type when a command has ended, for a shell."""

import shutil
import sys
from pathlib import Path

from chatsmith.config import Config
from chatsmith.runs.run import Run
from chatsmith.screen.text import shell
from chatsmith.stages.inputs import policy_location
from chatsmith.stages.table import BY_NAME
from chatsmith.world.second_act import second_act


def next_commands(run: Run) -> list[tuple[str, str]]:
    """Each with its purpose."""
    typed = sys.argv[0]  # to be typed again, where `chatsmith` alone would not be found
    program = typed if Path(typed).name == "chatsmith" and not shutil.which("chatsmith") else "chatsmith"
    if run.manifest.status == "partial":
        return [("The other stages", "the same command without --only")]
    road = Config().stages
    if run.config.stages[-1] in road[:-1]:
        last = max((place for place, stage in enumerate(road) if run.finished(stage)), default=-1)
        options: list[str | Path] = ["--actor-model", Path(policy_location(run, road[last + 1]))]
        for stage in road[1 : last + 1]:
            options += [BY_NAME[stage].option, run.directory / stage / next(iter(BY_NAME[stage].models))]
        return [("Next stage", shell([program, road[last + 1], *options, "--data", "FILE.jsonl", "--run-dir", "DIR"]))]
    yours = ["--actor-model", "MODEL", "--data", "FILE.jsonl", "--run-dir", "DIR"]
    return [
        ("Talk to it", shell([program, "chat", run.directory])),
        ("Your own model and data", shell([program, "train", *yours])),
        *second_act(run, program),
    ]
