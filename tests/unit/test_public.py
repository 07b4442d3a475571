"""What users rely on: the names in Python and the command line. A change here is a change for them.

The keys of the configuration are pinned by docs/configuration.md, which the tests of the documents compare.
"""

import subprocess
import sys

import typer

import chatsmith
from chatsmith.cli import app

OF_A_STAGE = {
    *("actor_model", "data", "recipe", "run_dir", "seed", "force", "dry_run", "track", "from_", "help_all"),
}
COMMANDS = {
    "train": {*OF_A_STAGE, "reward_model", "rewards", "judge", "stages", "only"},
    "sft": OF_A_STAGE,
    "label": {*OF_A_STAGE, "judge"},
    "pairs": {*OF_A_STAGE, "rewards", "judge"},
    "reward": {*OF_A_STAGE, "reward_model", "judge"},
    "rl": {*OF_A_STAGE, "rewards", "judge"},
    "recipes": {"name"},
    "chat": {
        *("model", "stage", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "max_new_tokens"),
        *("system", "seed"),
    },
    "runs": {"directory"},
    "report": {"run", "run2", "output"},
    "bench": {"model", "prompt_tokens", "answer_tokens", "batch", "as_json"},
    "collect self-instruct": {
        *("seeds", "endpoint", "model", "number", "output", "budget", "price_input", "price_output"),
        *("temperature", "max_tokens", "parallel", "seed"),
    },
    "data check": {"specs", "map", "recipe", "actor_model", "reward_model"},
    "data show": {"specs", "map", "count", "stage", "recipe", "actor_model", "reward_model", "at", "seed"},
}


def test_the_public_names_are_these_and_all_can_be_had():
    assert chatsmith.__all__ == ["Assistant", "Config", "PolicyTrainer", "Reward", "load", "load_reward"]
    for name in chatsmith.__all__:
        assert getattr(chatsmith, name).__doc__, name
        assert name in dir(chatsmith)


def test_importing_chatsmith_alone_loads_neither_torch_nor_transformers():
    code = "import sys, chatsmith; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_command_line_is_this():
    commands = dict(typer.main.get_command(app).commands)
    for group in ("collect", "data"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    assert {name: {p.name for p in command.params} - {"help"} for name, command in commands.items()} == COMMANDS
