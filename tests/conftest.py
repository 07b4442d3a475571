"""Fixtures for all tests."""

import pytest
from tiny import saved_model


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """family -> a complete Hugging Face directory with a tiny model and the byte tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return lambda family="llama": saved_model(folder, family)
