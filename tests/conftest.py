"""Fixtures for all tests, what holds in each of them, and a last line that says what was not tried."""

import logging
import os
import resource
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` runs a worker per core
os.environ.pop("COLUMNS", None)  # of a terminal that is not the worker's own
os.environ.pop("LINES", None)

import newer_transformers  # noqa: F401, before any model
import pytest
import transformers
from tiny import saved_model

import chatsmith.models.load  # noqa: F401, makes transformers' log quiet, once

skipped: Counter[str] = Counter()


def pytest_configure(config):
    """What is an error in a test (pyproject.toml) is one in the commands that it starts, as far as -W can say it."""
    filters = [line for line in config.getini("filterwarnings") if "(?" not in line]
    os.environ["PYTHONWARNINGS"] = ",".join(filters)


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1


def pytest_unconfigure(config):
    """The very last line."""
    if not hasattr(config, "workerinput"):
        reasons = [f"{reason} ({count} tests)" for reason, count in sorted(skipped.items())]
        print(f"\nnot tried here: {'; '.join(reasons) or 'nothing'}")


class Deprecations(logging.Handler):
    """transformers announces some in its log instead of by a warning."""

    def emit(self, record):
        if "deprecat" in record.getMessage().lower():
            raise AssertionError(record.getMessage())


@pytest.fixture(scope="session", autouse=True)
def deprecations_in_the_log_are_errors():
    handler, logger = Deprecations(), logging.getLogger("transformers")
    transformers.logging.set_verbosity_warning()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Prepared data goes nowhere else, in the commands that tests start neither."""
    os.environ["CHATSMITH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """family -> a complete Hugging Face directory with a tiny model and the byte tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return lambda family="llama": saved_model(folder, family)


@pytest.fixture
def small_files():
    """A limit on the size of files stands for a full disk: writes past it fail in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
