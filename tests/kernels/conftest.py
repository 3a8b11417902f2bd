"""Fixtures of the kernel tests.

Tests of the kernels themselves lie in `interpreted/`. They need `TRITON_INTERPRET=1` set before triton is imported,
which would make everything else in the process run its kernels in slow motion, so `test_interpreted.py` runs each of
those files in a process of its own. With a GPU they run here and now, on the device.
"""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob: list[str] = []
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob.append("interpreted/*")


@pytest.fixture
def device() -> str:
    """Where the kernels under test run: the GPU, or the CPU in the interpreter."""
    return "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh random stream per test, the same on every run."""
    return torch.Generator().manual_seed(0)
