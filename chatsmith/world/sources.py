"""The task world's files as a run's data."""

from chatsmith.assistant import Assistant
from chatsmith.data.sources import Source
from chatsmith.intake import read
from chatsmith.runs.run import Run
from chatsmith.stages.inputs import ask
from chatsmith.world import material


def sources(run: Run, asked: Assistant | None) -> list[Source]:
    """The task world's files as sources; with a model to ask, preferences between its answers are made first."""
    config, data = run.config, run.directory / "data"
    preferences = run.directory / "reward" / material.PREFERENCES
    assert config.world is not None
    if asked is not None and not preferences.exists():
        run.screen.line("")
        run.screen.line("Asking the SFT model for answers to compare")
        tasks = material.preference_tasks(config, config.world)
        records = [material.as_record(task) for task in tasks]
        samples = ask(run, asked, records, len(records), each=2)
        material.write_preferences(config, config.world, tasks, samples, preferences)
    files = {"sft": data / material.DEMONSTRATIONS, "rl": data / material.PROMPTS, "reward": preferences}
    return [read(config, f"{stage}:{file}", on_error="raise") for stage, file in files.items() if file.exists()]
