"""The command line as a user calls it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medseg.io import write
from medseg_app.cli import app
from tiny_model import build_tiny_model, head

Cli = Callable[..., subprocess.CompletedProcess[str]]
Call = Callable[..., Result]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return build_tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A head-like image in a folder of its own."""
    path = tmp_path / "scan.nii.gz"
    write(head(), path)
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a command: one thread, plain text, no folder of ours on the path but the installed package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}


@pytest.fixture(scope="session")
def cli(environment: dict[str, str]) -> Cli:
    """Runs `medseg` in a process of its own."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "medseg_app", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return call


@pytest.fixture(scope="session")
def call() -> Call:
    """Runs `medseg` within this process: the same arguments, output and exit code without seconds of imports."""
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "120"})
