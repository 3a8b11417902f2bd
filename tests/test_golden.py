"""The golden checker itself, and every vector in ../shared/golden that it already knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import golden

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
MET = [
    "rat/*",
    *("her-seg/*", "sam2-sgp/*"),
    *("db-sam/*", "disgan/*", "fsg-net/*"),
]
needs_vectors = pytest.mark.skipif(not SHARED.is_dir(), reason="the golden vectors ../shared/golden are not here")
FILES = [file for pattern in MET for file in sorted(SHARED.glob(f"{pattern}.safetensors"))]


@needs_vectors
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_vector_is_met(file: Path) -> None:
    worst, where = golden.check(file)
    assert worst <= 1, f"{worst} of the tolerance at {where}"


@needs_vectors
def test_no_pattern_is_stale() -> None:
    assert all(list(SHARED.glob(f"{pattern}.safetensors")) for pattern in MET)


@needs_vectors
@pytest.mark.slow
def test_vectors_are_met_by_the_kernels() -> None:
    pytest.importorskip("triton")
    cases = ["disgan/dwt3", "fsg-net/02_guided_filter_single", "her-seg/dla_c48_h3_8x8", "db-sam/deform_core_3levels"]
    command = [sys.executable, golden.__file__, "--fused", *(str(SHARED / f"{case}.safetensors") for case in cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def altered(source: Path, target: Path, key: str | None = None, **meta: object) -> Path:
    """A copy of a vector with one entry of one tensor moved by a thousandth of the largest, or other metadata."""
    with safe_open(source, "pt") as file:
        golden_meta = json.loads(file.metadata()["golden"]) | meta
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
    if key is not None:
        tensors[key].view(-1)[-1] += 1e-3 * tensors[key].abs().max()
    save_file(tensors, target, {"golden": json.dumps(golden_meta)})
    return target


@needs_vectors
@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("her-seg/dla_c48_h12_10x10", "output.y"),
        ("her-seg/dla_c48_h12_10x10", "output.grad_qk.weight"),
        ("rat/01_region_attention_odd", "output.grad.qkv.weight"),
        ("db-sam/deform_core_3levels", "output.grad_sampling_locations"),
        ("fsg-net/03_guided_filter_batch", "output.y_each_sample_alone"),
        ("disgan/dwt3", "output.coef1"),
        ("sam2-sgp/rope_attention", "state.cross_attn_image.v_proj.weight"),
    ],
)
def test_a_corrupted_vector_fails(case: str, key: str, tmp_path: Path) -> None:
    worst, _ = golden.check(altered(SHARED / f"{case}.safetensors", tmp_path / "renamed.safetensors", key))
    assert worst > 1


@needs_vectors
def test_an_output_nobody_computes_fails(tmp_path: Path) -> None:
    file = tmp_path / "more.safetensors"
    with safe_open(SHARED / "disgan/dwt3.safetensors", "pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 safe_open is no mapping
        save_file(tensors | {"output.extra": torch.zeros(2)}, file, source.metadata())
    worst, where = golden.check(file)
    assert worst == float("inf")
    assert "extra" in where


@needs_vectors
def test_an_unknown_system_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = altered(SHARED / "disgan/dwt3.safetensors", tmp_path / "other.safetensors", system="other")
    assert golden.main([str(file)]) == 1
    assert "cannot be interpreted" in capsys.readouterr().out


def test_a_file_that_is_no_vector_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert golden.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("cannot be interpreted") == 2


def test_an_empty_folder_fails(tmp_path: Path) -> None:
    assert golden.main([str(tmp_path)]) == 1


@needs_vectors
def test_weights_that_are_not_stored_are_drawn(tmp_path: Path) -> None:
    source, target = SHARED / "rat/01_region_attention_odd.safetensors", tmp_path / "recipe.safetensors"
    with safe_open(source, "pt") as file:
        meta = json.loads(file.metadata()["golden"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is no mapping
    state = {name.removeprefix("state."): list(x.shape) for name, x in tensors.items() if name.startswith("state.")}
    kept = {name: x for name, x in tensors.items() if not name.startswith("state.")}
    meta |= {"state_stored": False, "state_shapes": state}
    save_file(kept, target, {"golden": json.dumps(meta)})
    assert golden.check(target)[0] <= 1
