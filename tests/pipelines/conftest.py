"""A model with random weights for everything that needs one."""

from pathlib import Path

import pytest

from tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return build_tiny_model(tmp_path_factory.mktemp("models"))
