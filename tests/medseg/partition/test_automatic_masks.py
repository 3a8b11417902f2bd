"""Masks of Segment Anything: those of the package's own generator, and what is said where something is missing."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medseg.errors import ModelMissing
from medseg.networks.sam import PRESETS, Sam
from medseg.partition import AutomaticMasks, automatic_masks, partition
from medseg.partition.torchvision_ops import load_torchvision, suppress
from medseg.regions import region_map

SIDE, WIDTH = 128, 32
RULES = AutomaticMasks(points=5, overlap=0.1, stability=0.3, duplicates=0.9)


def picture(size: tuple[int, int]) -> np.ndarray:
    """Slow waves with some noise, uint8."""
    rows, columns = np.mgrid[: size[0], : size[1]] / 20
    noise = np.random.default_rng(1).normal(size=size)
    return np.clip(128 + 60 * np.sin(rows) * np.cos(1.3 * columns) + 5 * noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> Sam:
    """A tiny SAM, random, whose masks are patches that depend on the prompt, and whose estimates differ."""
    torch.manual_seed(0)
    changes = {"depth": 2, "num_heads": 2, "global_attn_indexes": (1,), "window_size": 3, "mask_in_chans": 4}
    widths = {"embed_dim": WIDTH, "out_chans": WIDTH, "img_size": SIDE, "iou_head_hidden_dim": WIDTH}
    sam = Sam("vit_b", decoder_heads=2, decoder_mlp_dim=32, **changes, **widths).eval()
    decoder: Any = sam.mask_decoder
    places = sam.image_encoder.get_parameter("pos_embed")
    heads = [head.layers[-1] for head in decoder.output_hypernetworks_mlps]
    with torch.no_grad():
        places += 3 * F.interpolate(torch.randn(1, WIDTH, 3, 3), places.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
            layer.weight[:] = 2 * layer.weight.mean((2, 3), keepdim=True)  # no speckles
        decoder.output_upscaling[3].weight[:, 0], decoder.output_upscaling[3].bias[0] = 0, 4  # the same everywhere
        for head in heads:
            head.weight *= 400
            head.weight[0], head.bias[0] = 0, 0
        pixels = torch.from_numpy(picture((SIDE, SIDE))).float().expand(1, 3, -1, -1)
        points = (torch.rand(32, 1, 2) * SIDE, torch.ones(32, 1))
        answer = sam.decode(sam.encode(sam.preprocess(pixels)), points=points, multimask=True)
        for head, logits in zip(heads[1:], answer.logits.unbind(1), strict=True):
            head.bias[0] = -logits.quantile(0.8) / 4  # lifts the mask until a fifth is inside
        estimate = decoder.iou_prediction_head.layers[-1]
        estimate.weight /= answer.iou.std()
        estimate.bias[:] = 0
    return sam


@pytest.fixture(scope="module")
def peer(network: Sam) -> Any:
    """The same SAM as the package builds it."""
    load_torchvision()
    from segment_anything import modeling as parts

    norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = parts.ImageEncoderViT(
        img_size=SIDE,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        out_chans=WIDTH,
        norm_layer=norm,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    decoder = parts.MaskDecoder(
        transformer_dim=WIDTH,
        transformer=parts.TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=2, mlp_dim=32),
        iou_head_hidden_dim=WIDTH,
    )
    prompts = parts.PromptEncoder(WIDTH, (SIDE // 16, SIDE // 16), (SIDE, SIDE), mask_in_chans=4)
    sam = parts.Sam(encoder, prompts, decoder).eval()
    sam.load_state_dict(network.state_dict())
    return sam


@pytest.mark.parametrize("size", [(128, 128), (61, 90), (200, 150)])
def test_masks_are_those_of_the_package(peer: Any, network: Sam, size: tuple[int, int]) -> None:
    from segment_anything import SamAutomaticMaskGenerator

    grey = picture(size)
    generator = SamAutomaticMaskGenerator(
        peer,
        points_per_side=RULES.points,
        pred_iou_thresh=RULES.overlap,
        stability_score_thresh=RULES.stability,
        stability_score_offset=RULES.offset,
        box_nms_thresh=RULES.duplicates,
    )
    wanted = generator.generate(np.repeat(grey[:, :, None], 3, axis=2))
    found = automatic_masks.propose(network, grey, RULES)
    assert 1 < len(wanted) < 3 * RULES.points**2  # the rules let some pass, and not all
    assert len(found.masks) == len(wanted)
    torch.testing.assert_close(found.overlaps, torch.tensor([mask["predicted_iou"] for mask in wanted]))
    for ours, mask in zip(found.masks.numpy(), wanted, strict=True):
        theirs = mask["segmentation"]
        assert (ours & theirs).sum() > 0.99 * (ours | theirs).sum()


def test_no_mask_at_all_is_one_region(network: Sam) -> None:
    found = automatic_masks.propose(network, np.zeros((40, 40), np.uint8), AutomaticMasks(points=2, overlap=99.0))
    assert found.masks.shape == (0, 40, 40)
    assert region_map(found.masks).unique().tolist() == [1]


def test_a_stack_is_cut_slice_by_slice(network: Sam, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(automatic_masks, "load_network", lambda checkpoint: network)
    values = np.random.default_rng(2).normal(size=(50, 40, 2)).astype(np.float32)
    calls: list[tuple[int, int]] = []
    found = partition(values, RULES, progress=lambda done, of: calls.append((done, of)))
    assert found.dtype == np.int32
    assert found.min() >= 1
    assert calls == [(1, 2), (2, 2)]
    assert (found[:, :, 0] != found[:, :, 1]).any()


def test_the_size_is_read_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"depth": 1, "decoder_mlp_dim": 8, "iou_head_hidden_dim": 8}
    monkeypatch.setitem(PRESETS, "vit_l", Sam("vit_l", **small, global_attn_indexes=(0,), img_size=64).config)
    path = tmp_path / "sam.pth"
    torch.save(Sam("vit_l").state_dict(), path)
    assert automatic_masks.load_network(path).config.embed_dim == 1024


def test_a_missing_or_wrong_checkpoint_says_what_to_fetch(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 1))
    with pytest.raises(ModelMissing, match=r"got none; fetch sam_vit_b_01ec64\.pth.*checkpoint$") as caught:
        partition(values, AutomaticMasks())
    assert caught.value.exit_code == 5
    with pytest.raises(ModelMissing, match=r"'sam\.pth' is missing; fetch"):
        partition(values, AutomaticMasks(tmp_path / "sam.pth"))
    (tmp_path / "sam.pth").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelMissing, match="damaged"):
        partition(values, AutomaticMasks(tmp_path / "sam.pth"))
    torch.save({"other": torch.zeros(3)}, tmp_path / "sam.pth")
    with pytest.raises(ModelMissing, match="must be of vit_b, vit_l, vit_h"):
        partition(values, AutomaticMasks(tmp_path / "sam.pth"))


def test_a_missing_package_says_what_to_install(network: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything.utils", None)
    with pytest.raises(ModelMissing, match=r"pip install 'medseg\[sam\]'"):
        automatic_masks.propose(network, np.zeros((8, 8), np.uint8), RULES)


def test_the_package_imports_beside_any_torch() -> None:
    code = (
        "from medseg.partition.torchvision_ops import load_torchvision; kind = load_torchvision();"
        "import torchvision, segment_anything, torch;"
        "assert kind in ('native', 'replaced');"
        "boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]]);"
        "keep = torchvision.ops.batched_nms(boxes, torch.tensor([.1, .9, .5]), torch.zeros(3), 0.7);"
        "assert keep.tolist() == [1, 2], keep"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_suppression_is_what_its_definition_says(count: int) -> None:
    torch.manual_seed(count)
    low = torch.rand(count, 2) * 20
    boxes, scores = torch.cat((low, low + torch.rand(count, 2) * 20), dim=1), torch.rand(count).round(decimals=1)

    def overlap(a: list[float], b: list[float]) -> float:
        common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        return common / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - common)

    wanted: list[int] = []
    for index in sorted(range(count), key=lambda i: -float(scores[i])):
        if all(overlap(boxes[index].tolist(), boxes[other].tolist()) <= 0.5 for other in wanted):
            wanted.append(index)
    assert suppress(boxes, scores, 0.5).tolist() == wanted
