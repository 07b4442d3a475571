"""What the demo shows once it has been seen: a reward that nothing holds."""

from chatsmith.config import Config
from chatsmith.report.settings import repeated
from chatsmith.runs.run import Run
from chatsmith.screen.text import shell
from chatsmith.stages.table import RL, named


def second_act(run: Run, program: str) -> list[tuple[str, str]]:
    """For a run of the task world, a command that continues a copy of it without KL, with its purpose."""
    given = Config.model_validate(run.manifest.config.whole())
    if given.world is None or given.rl.kl_coef == 0:
        return []
    copy = run.directory.with_name(f"{run.directory.name}-no-kl")
    steps = 2 * (run.manifest.stages[RL.name].report.steps or 1)
    loose = given.rl.model_copy(update={"kl_coef": 0, "schedule": "constant", "steps": steps})
    config = given.model_copy(update={"rl": loose})
    words = repeated(config.model_dump(mode="json"), run.manifest.recipe)
    again = shell([program, *words, "--run-dir", copy, "--from", RL.name, "--force"])
    return [
        (
            named("Watch PPO over-optimise the reward when nothing holds it", given.rl.algorithm),
            f"{shell(['cp', '-r', run.directory, copy])} && {again}",
        )
    ]
