from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.haar3d import (
    haar3d,
    haar3d_project,
    haar3d_project_reference,
    haar3d_reference,
    ihaar3d,
    ihaar3d_reference,
)

module = import_module("medseg_kernels.haar3d")  # the package has a function of this name
SHAPES = [(1, 1, 2, 2, 2), (2, 3, 4, 6, 10), (1, 5, 8, 14, 18)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    assert_matches_reference(haar3d, haar3d_reference, [x])
    assert_matches_reference(ihaar3d, ihaar3d_reference, [haar3d_reference(x)])


@pytest.mark.parametrize(("channels", "low", "high"), [(3, 1, 1), (3, 4, 2), (6, 4, 2)])
def test_projection_equals_transform_then_convolutions(
    channels: int, low: int, high: int, generator: torch.Generator
) -> None:
    x = torch.randn(2, channels, 4, 6, 10, generator=generator)
    weights = [torch.randn(shape, generator=generator) for shape in ((low, channels, 1, 1, 1), (low,))]
    weights += [torch.randn(shape, generator=generator) for shape in ((high, 7 * channels, 1, 1, 1), (high,))]
    # The merged weights are rounded once more than the reference's own.
    assert_matches_reference(haar3d_project, haar3d_project_reference, [x, *weights])
    with torch.no_grad():
        assert_matches_reference(haar3d_project, haar3d_project_reference, [x, *weights], gradients=False)


def test_bands_tell_the_direction_of_an_edge() -> None:
    ramp = torch.arange(4.0)
    for band, axis in ((4, 2), (2, 3), (1, 4)):
        x = ramp.view([4 if n == axis else 1 for n in range(5)]).expand(1, 1, 4, 4, 4)
        energy = haar3d(x).square().sum((0, 2, 3, 4))
        assert set(energy.nonzero().flatten().tolist()) == {0, band}


def test_inverse_and_energy(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 8, 6, 10, generator=generator)
    torch.testing.assert_close(ihaar3d(haar3d(x)), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(haar3d(x).square().sum(), x.square().sum(), rtol=1e-6, atol=0)


def test_each_is_the_adjoint_of_the_other(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64, generator=generator)
    y = torch.randn(1, 16, 2, 3, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((haar3d(x) * y).sum(), (x * ihaar3d(y)).sum())


@pytest.mark.parametrize("op", [haar3d_reference, ihaar3d_reference, haar3d, ihaar3d])
def test_gradcheck(op: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    x = torch.randn(1, 8, 2, 4, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


@pytest.mark.parametrize("shape", [(1, 1, 3, 2, 2), (1, 1, 2, 2, 5), (1, 2, 2, 2)], ids=str)
def test_odd_sides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even"):
        haar3d(torch.zeros(shape))


def test_channels_that_are_no_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="8 C"):
        ihaar3d(torch.zeros(1, 9, 2, 2, 2))


def test_compile_export_and_trace(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 4, 6, 8, generator=generator)
    want = haar3d(x)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ihaar3d(haar3d(x) * 2.0)

    torch.testing.assert_close(torch.compile(haar3d, fullgraph=True, backend="aot_eager")(x), want, rtol=0, atol=0)
    batch = torch.export.Dim("batch", min=1, max=64)
    x = x.expand(3, -1, -1, -1, -1)
    exported = torch.export.export(Net(), (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(x[:2]), 2 * x[:2])
    for frozen in (torch.jit.trace(Net(), x), torch.jit.script(Net())):
        assert "medseg::" not in str(frozen.inlined_graph)  # loads in a process without this package
        torch.testing.assert_close(frozen(x), 2 * x)


def test_autocast_and_inference_mode_keep_the_dtype(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 4, 6, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(haar3d(x), haar3d(x.clone()))
        assert haar3d(x).dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 200, 1500, 5000])
def test_slabs_of_any_size_give_the_same(
    chunk: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(5, 3, 8, 6, 10, generator=generator)  # 480 voxels a channel, 1440 a sample
    whole = haar3d(x)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert torch.equal(haar3d(x), whole)
    torch.testing.assert_close(ihaar3d(whole), x, rtol=0, atol=1e-6)


def test_equal_neighbours_leave_exactly_nothing(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 1, 1, 1, generator=generator).expand(2, 3, 4, 6, 46)
    assert not haar3d(x)[:, 3:].any()
