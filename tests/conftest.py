"""Fixtures for all tests."""

import os

import pytest
from tiny import saved_model


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Prepared data goes nowhere else, in the commands that tests start neither."""
    os.environ["CHATSMITH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """family -> a complete Hugging Face directory with a tiny model and the byte tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return lambda family="llama": saved_model(folder, family)
