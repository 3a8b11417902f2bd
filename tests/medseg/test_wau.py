"""Window Attention Upsample against a loop over its windows, and the U-Net around it."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks import build_network, network_names
from medseg.networks.wau import AttentionDecoder, WAUNet, WindowAttentionUpsample, build_upsample
from memory import Memory, memory_of

# deep grid, ratio, M, batch: windows that divide the grid, that do not, and one larger than the map
CASES = [
    ((8, 4), (2, 2), 4, 1),
    ((5, 7), (2, 2), 3, 2),
    ((3, 2), (2, 2), 8, 1),
    ((5, 1), (1, 2), 2, 2),
    ((4, 4, 4), (2, 2, 2), 2, 1),
    ((3, 5, 2), (2, 2, 2), 4, 2),
    ((3, 4, 5), (1, 2, 2), 2, 2),
    ((2, 3, 2), (2, 2, 2), 8, 1),
]
KINDS = ("transpose-conv", "linear", "wau")


def _double(module: nn.Module, seed: int = 0) -> Any:
    """The module in float64 with every parameter drawn, so that none is at a harmless zero or one."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return module


def _features(
    deep: Sequence[int], ratio: Sequence[int], *, batch: int, channels: tuple[int, int] = (6, 4)
) -> list[Tensor]:
    """Random deep and lateral feature in float64."""
    generator = torch.Generator().manual_seed(1)
    lateral = [r * n for r, n in zip(ratio, deep, strict=True)]
    shapes = ((batch, channels[0], *deep), (batch, channels[1], *lateral))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _pointwise(x: Tensor, layer: nn.Module) -> Tensor:
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    return torch.einsum("oc,bc...->bo...", weight.flatten(1), x) + bias.view(-1, *[1] * (x.dim() - 2))


def _normalised(x: Tensor, layer: nn.Module) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    scale, offset = (layer.get_parameter(name).view(-1, *[1] * (x.dim() - 2)) for name in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + offset


def _attended(module: AttentionDecoder, q: Tensor, k: Tensor, v: Tensor, origin: Sequence[int]) -> Tensor:
    """Window by window, and query by query within it; windows start at `origin` and each M cells after it."""
    out = torch.full((*q.shape[:2], *q.shape[2:]), float("nan"), dtype=q.dtype)
    heads, side, ratio = module.heads, module.window[0], module.ratio
    for corner in product(*[range(at, size, side) for at, size in zip(origin, k.shape[2:], strict=True)]):
        inside = [range(max(0, at), min(at + side, n)) for at, n in zip(corner, k.shape[2:], strict=True)]
        keys = list(product(*inside))
        fine = [range(r * cells.start, r * cells.stop) for r, cells in zip(ratio, inside, strict=True)]
        for query in product(*fine):
            for b, h in product(range(len(q)), range(heads)):
                part = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
                near = torch.stack([k[(b, part, *key)] for key in keys])
                logits = near @ q[(b, part, *query)] / near.shape[1] ** 0.5
                if module.bias is not None:
                    # the smallest distance is that of the window's first query from its last key
                    rows = [
                        tuple(i - r * j + r * (side - 1) for i, j, r in zip(query, key, ratio, strict=True))
                        for key in keys
                    ]
                    logits = logits + torch.stack([module.bias.table[(h, *row)] for row in rows])
                values = torch.stack([v[(b, part, *key)] for key in keys])
                out[(b, part, *query)] = logits.softmax(0) @ values
    return out


def _reference(module: WindowAttentionUpsample, deep: Tensor, lateral: Tensor) -> Tensor:
    """The whole module, told as steps 1 to 6 of its specification."""
    decoder, d = module.decoder, deep.dim() - 2
    convolve = {2: F.conv2d, 3: F.conv3d}[d]

    def projected(x: Tensor, layers: nn.Module) -> Tensor:
        depthwise, pointwise = layers.get_submodule("0"), layers.get_submodule("1")
        weight, bias = depthwise.get_parameter("weight"), depthwise.get_parameter("bias")
        return _pointwise(convolve(x, weight, bias, padding=1, groups=x.shape[1]), pointwise)

    q = projected(_normalised(lateral, decoder.norm_lateral), decoder.query)
    k, v = projected(_normalised(deep, decoder.norm_deep), decoder.key_value).chunk(2, dim=1)
    side = decoder.window[0]
    origin = [(side // 2 - side if decoder.shift and side > 1 else 0)] * d
    out = _pointwise(_attended(decoder, q, k, v, origin), decoder.project)
    inner = F.gelu(_pointwise(_normalised(out, decoder.mlp[0]), decoder.mlp[1]))
    attention = out + _pointwise(inner, decoder.mlp[3])
    mode = {2: "bilinear", 3: "trilinear"}[d]
    residual = _pointwise(deep, module.residual)
    return attention + F.interpolate(residual, size=lateral.shape[2:], mode=mode, align_corners=False)


@pytest.mark.parametrize(("shift", "relative_bias"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize(("grid", "ratio", "window", "batch"), CASES, ids=str)
def test_equals_a_loop_over_windows(
    grid: tuple[int, ...], ratio: tuple[int, ...], window: int, batch: int, shift: bool, relative_bias: bool
) -> None:
    options = {"ratio": ratio, "window": window, "heads": 2, "shift": shift, "relative_bias": relative_bias}
    module = _double(WindowAttentionUpsample(6, 4, spatial_dims=len(grid), **options))
    deep, lateral = _features(grid, ratio, batch=batch)
    with torch.no_grad():
        torch.testing.assert_close(module(deep, lateral), _reference(module, deep, lateral), rtol=0, atol=1e-10)


def test_embedding_may_differ_from_the_lateral_channels() -> None:
    module = _double(WindowAttentionUpsample(6, 5, ratio=(2, 2), spatial_dims=2, window=2, heads=3, embed_channels=9))
    deep, lateral = _features((3, 3), (2, 2), batch=1, channels=(6, 5))
    with torch.no_grad():
        torch.testing.assert_close(module(deep, lateral), _reference(module, deep, lateral), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("grid", "ratio", "shift"), [((3, 2), (2, 2), False), ((3, 2), (2, 1), True), ((2, 1, 2), (1, 2, 2), True)]
)
def test_gradients(grid: tuple[int, ...], ratio: tuple[int, ...], shift: bool) -> None:
    options = {"ratio": ratio, "window": 2, "heads": 1, "shift": shift}
    module = _double(WindowAttentionUpsample(2, 2, spatial_dims=len(grid), **options))
    inputs = [x.requires_grad_() for x in _features(grid, ratio, batch=1, channels=(2, 2))]
    names = [name for name, _ in module.named_parameters()]

    def run(deep: Tensor, lateral: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (deep, lateral))

    assert torch.autograd.gradcheck(run, [*inputs, *module.parameters()], fast_mode=True)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("grid", "ratio", "window", "batch"), CASES, ids=str)
def test_a_constant_deep_feature_gives_a_constant(
    grid: tuple[int, ...], ratio: tuple[int, ...], window: int, batch: int, shift: bool
) -> None:
    module = _double(AttentionDecoder(6, 4, ratio=ratio, window=window, heads=2, shift=shift, spatial_dims=len(grid)))
    weight = module.key_value.get_submodule("0").get_parameter("weight")
    centre = tuple(1 for _ in grid)
    # the zeros around the map reach the values through the outer taps; what is tested is the attention behind them
    mask = torch.zeros_like(weight)
    mask[(slice(None), slice(None), *centre)] = 1
    weight.data *= mask
    deep, lateral = _features(grid, ratio, batch=batch)
    deep = deep.flatten(2)[..., :1].unflatten(2, [1] * len(grid)).expand_as(deep)
    with torch.no_grad():
        out = module(deep, lateral).flatten(2)
    torch.testing.assert_close(out, out[..., :1].expand_as(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [False, True])
def test_memory_grows_with_the_tokens_and_not_with_their_square(shift: bool) -> None:
    module = WindowAttentionUpsample(8, 8, ratio=(2, 2, 2), window=2, heads=2, shift=shift)

    def found(side: int) -> Memory:
        deep, lateral = torch.randn(1, 8, side, side, side), torch.randn(1, 8, *[2 * side] * 3)
        return memory_of(lambda: module(deep, lateral).sum().backward())

    small, large = found(6), found(12)
    assert large.largest < 4 * 24**3 * 12**3  # what one score for each query and key would take
    # the shifted windows of the smaller grid hold more empty cells, and parameters do not grow at all
    assert large.peak <= 8 * small.peak
    assert large.largest <= 8 * small.largest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "ratio"), [((4, 3), (2, 2)), ((3, 2, 4), (2, 2, 2)), ((3, 2, 4), (1, 2, 2))])
def test_every_kind_brings_deep_to_lateral(kind: Any, grid: tuple[int, ...], ratio: tuple[int, ...]) -> None:
    block = build_upsample(kind, 8, 4, ratio=ratio, spatial_dims=len(grid), heads=2)
    lateral = [r * n for r, n in zip(ratio, grid, strict=True)]
    out = block(torch.randn(2, 8, *grid), torch.randn(2, 4, *lateral))
    assert out.shape == (2, 4, *lateral)
    assert bool(out.isfinite().all())


def test_errors_name_what_came() -> None:
    block = WindowAttentionUpsample(4, 4, ratio=(2, 2), spatial_dims=2)
    for grid in ((9, 8), (12, 12), (4, 4)):
        with pytest.raises(ValueError, match=rf"got \({grid[0]}, {grid[1]}\) over \(4, 4\)"):
            block(torch.randn(1, 4, 4, 4), torch.randn(1, 4, *grid))
    with pytest.raises(ValueError, match="embedding of 4 channels, got 3"):
        WindowAttentionUpsample(4, 4, heads=3)
    unknown: Any = "nearest"
    with pytest.raises(ValueError, match="transpose-conv, linear or wau, got 'nearest'"):
        build_upsample(unknown, 4, 4, ratio=(2, 2, 2))


@pytest.mark.parametrize("kind", [*KINDS, ["wau", "linear"]], ids=str)
@pytest.mark.parametrize(("stem", "spatial_dims"), [(1, 2), (2, 2), (1, 3), (2, 3)])
def test_network_predicts_every_voxel(kind: Any, stem: int, spatial_dims: int) -> None:
    network = WAUNet(1, 3, channels=(4, 8, 8), upsample=kind, stem=stem, heads=2, spatial_dims=spatial_dims)
    grid = [stem * 4 * n for n in (1, 3, 2)][:spatial_dims]
    assert network.multiple == stem * 4
    assert network(torch.randn(2, 1, *grid)).shape == (2, 3, *grid)


@pytest.mark.parametrize("channels", [(4, 8), (4, 4, 8, 8, 8)], ids=str)
def test_stages_follow_the_channels(channels: tuple[int, ...]) -> None:
    network = WAUNet(2, 3, channels=channels, heads=2, spatial_dims=2)
    stages = len(channels) - 1
    assert len(network.decoder) == len(network.upsample) == stages
    shifts = [block.decoder.shift for block in network.upsample if isinstance(block, WindowAttentionUpsample)]
    assert shifts == [stage % 2 == 1 for stage in range(stages)]
    side = network.multiple
    assert network(torch.randn(1, 2, side, 2 * side)).shape == (1, 3, side, 2 * side)
    with pytest.raises(ValueError, match=rf"multiple of {side}, got \({side}, {side + 1}\)"):
        network(torch.randn(1, 2, side, side + 1))


@pytest.mark.parametrize(("stem", "spatial_dims"), [(1, 3), (2, 2), (2, 3), (4, 3)])
def test_logits_at_a_phase_are_those_of_the_whole(stem: int, spatial_dims: int) -> None:
    network = _double(WAUNet(1, 3, channels=(4, 8), upsample="linear", stem=stem, spatial_dims=spatial_dims))
    with torch.no_grad():
        image = torch.randn(2, 1, *[stem * 2 * n for n in (2, 1, 3)][:spatial_dims], dtype=torch.float64)
        features, whole = network.features(image), network(image)
        for phase in product(range(stem), repeat=spatial_dims):
            place = (..., *(slice(start, None, stem) for start in phase))
            torch.testing.assert_close(network.logits_at(features, phase), whole[place], rtol=0, atol=1e-12)


def test_stem_is_one_voxel_or_an_even_number() -> None:
    with pytest.raises(ValueError, match="stem must be 1 or even, got 3"):
        WAUNet(1, 2, channels=(4, 8), stem=3)


def test_a_shifted_stage_is_a_stage_of_its_own() -> None:
    straight = WAUNet(1, 2, channels=(4, 8, 8), shift=False, heads=2, window=2, spatial_dims=2).eval()
    shifted = WAUNet(1, 2, channels=(4, 8, 8), shift=True, heads=2, window=2, spatial_dims=2).eval()
    shifted.load_state_dict(straight.state_dict())
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(straight(image), shifted(image))


def test_build_network_says_what_it_does_not_know() -> None:
    assert "wau" in network_names()
    assert isinstance(build_network("wau", in_channels=1, out_channels=2, channels=(4, 8)), WAUNet)
    with pytest.raises(ValueError, match="got 'wauu'; did you mean wau"):
        build_network("wauu")
    with pytest.raises(TypeError, match="colour"):
        build_network("wau", in_channels=1, out_channels=2, colour="red")
    with pytest.raises(ValueError, match="one kind or 1, one per decoder stage, got 2"):
        build_network("wau", in_channels=1, out_channels=2, channels=(4, 8), upsample=["wau", "linear"])
