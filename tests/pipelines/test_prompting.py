"""From prompts to label maps: slices as they are looked at, walks that end, embeddings that are used again."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.geometry import to_ras
from medseg.io.prompts import read_prompts
from medseg.partition.torchvision_ops import load_torchvision
from medseg.picture import Picture
from medseg.prompts import Box, Mask, Point, Prompts
from medseg.volume import Volume
from medseg_pipelines import load_model
from medseg_pipelines.pipeline import RunOptions
from medseg_pipelines.prompting.embeddings import Embeddings
from medseg_pipelines.prompting.follow import Drawn, Manner, follow
from medseg_pipelines.prompting.frame import Frame
from medseg_pipelines.prompting.given import Given, target_on
from medseg_pipelines.prompting.grey import grey_range, to_eight_bit
from medseg_pipelines.prompting.model import Prompting
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.sections import PromptOptions
from medseg_pipelines.words import UNKNOWN_ORIGIN, UNTRAINED
from tiny_model import head
from tiny_prompting import NETWORK, build_tiny_prompting


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Prompting:
    """A tiny network with random weights, whose walks go on whatever it says."""
    loaded = load_model(build_tiny_prompting(tmp_path_factory.mktemp("sam")), device="cpu")
    assert isinstance(loaded, Prompting)
    return loaded


def _ball() -> tuple[Volume, np.ndarray]:
    """A bright ball of 7 voxels radius in the dark, and where it is; slices 3 mm thick."""
    x, y, z = np.meshgrid(*[np.arange(n) - n // 2 for n in (24, 24, 16)], indexing="ij")
    inside = x**2 + y**2 + (2 * z) ** 2 < 49
    return Volume((inside * 100 + 50).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), inside


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRP"])
def test_slices_are_shown_as_radiologists_look_at_them(orientation: str) -> None:
    volume = _oriented(orientation)
    axial = orientation.index("S")
    stack = Stack.of_volume(volume, axial)
    assert np.array_equal(stack.restored(stack.arranged(volume.voxels)), volume.voxels)
    corner = stack.slices[0, 0, 0]  # the right and front of the patient
    ras, _ = to_ras(volume)
    assert corner == ras.voxels[-1, -1, 0]
    place = stack.find(Point.at_voxel((1, 2, 1), volume.grid).on(volume.grid))
    column, row, at = place.round().astype(int)
    assert stack.slices[at, row, column] == volume.voxels[1, 2, 1]


def _oriented(letters: str) -> Volume:
    """A small volume with all values different, whose axes point to where the letters say."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(letters):
        world = ["RL", "AP", "SI"].index(next(pair for pair in ("RL", "AP", "SI") if letter in pair))
        affine[world, axis] = 1 if letter in "RAS" else -1
    return Volume(np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.int16), affine)


def _walk(prompts: list[Box | Point | Mask], manner: Manner | None) -> tuple[np.ndarray, dict[int, float]]:
    """What a perfect network draws of the ball, which answers a box with what of the ball lies in it."""
    volume, inside = _ball()
    stack = Stack.of_volume(volume, 2)
    truth, found = stack.arranged(inside), np.zeros((16, 24, 24), bool)

    def draw(at: int, given: Given, memory: object) -> Drawn:
        logits = np.full((24, 24), -9.0, np.float32)
        assert given.box is not None
        x0, y0, x1, y1 = (round(v) for v in given.box)
        # As SAM does, it finds something in every box.
        seen = truth[at] if truth[at].any() else np.ones_like(truth[at])
        logits[y0 : y1 + 1, x0 : x1 + 1] = np.where(seen, 9.0, -9.0)[y0 : y1 + 1, x0 : x1 + 1]
        return Drawn(logits)

    def keep(at: int, logits: np.ndarray) -> None:
        found[at] = logits > 0

    def grey(at: int) -> np.ndarray:
        return to_eight_bit(stack.slices[at], (0, 200))

    return found, follow(stack, grey, target_on(stack, prompts), draw, keep, manner=manner)


def test_the_walk_goes_both_ways_and_ends_where_the_structure_ends() -> None:
    volume, inside = _ball()
    truth = Stack.of_volume(volume, 2).arranged(inside)
    flat = Box.of_voxels((4, 4, 8), (20, 20, 8), volume.grid)
    manner = Manner(margin=2, presence=0.4)
    found, scores = _walk([flat], manner)
    assert np.array_equal(found, truth)
    assert scores[8] == 1.0
    assert min(scores.values()) < 0.4, "the slice behind the end was looked at and found empty"
    alone, scores = _walk([flat], None)
    assert np.flatnonzero(alone.any((1, 2))).tolist() == [8]
    assert scores == {8: 1.0}
    bounded, _ = _walk([Box.of_voxels((4, 4, 7), (20, 20, 9), volume.grid)], manner)
    assert np.flatnonzero(bounded.any((1, 2))).tolist() == [7, 8, 9], "a box with depth bounds the structure"
    sparse, scores = _walk([flat, Box.of_voxels((4, 4, 14), (8, 8, 14), volume.grid)], manner)
    assert sparse[14].any(), "the walk skips to the next prompt"
    assert scores[14] == 1.0


def test_what_lies_outside_is_refused() -> None:
    stack = Stack.of_volume(_ball()[0], 2)
    with pytest.raises(InputRefused, match=r"point must lie within the image, x .* to .*, y .* to .*, z .* to .*;"):
        target_on(stack, [Point(at=(0, 0, 99))])
    with pytest.raises(InputRefused, match="box must lie within the image, x "):
        target_on(stack, [Box(first=(90, 0, 0), last=(99, 9, 9))])
    with pytest.raises(InputRefused, match="all points are outside"):
        target_on(stack, [Point(at=(3, 3, 3), inside=False)])


def test_the_square_holds_true_shapes() -> None:
    frame = Frame.of((100, 200), (2.0, 1.0), 64)
    assert frame.padded == (64, 64), "100 rows of 2 mm are as long as 200 columns of 1 mm"
    assert np.allclose(
        Frame.of((300, 200), (1, 1), 1024).moved(np.array([20.0, 30.0])), (20 * 683 / 200, 30 * 1024 / 300)
    )
    assert Frame.of((300, 200), (1, 1), 64, fit="square").padded == (64, 64)


def test_ct_and_other_images_get_their_own_range() -> None:
    options = PromptOptions()
    assert grey_range(np.linspace(-1000, 1000, 1000), options) == options.hounsfield
    low, high = grey_range(np.concatenate((np.zeros(500), np.linspace(1, 101, 1001))), options)
    assert (low, high) == (pytest.approx(1.5), pytest.approx(100.5))
    assert to_eight_bit(np.array([[-5.0, 0.0, 50.0, 200.0]]), (0, 100)).tolist() == [[0, 0, 128, 255]]


def test_a_volume_from_end_to_end(model: Prompting, tmp_path: Path) -> None:
    volume = head(orientation="LPS")
    box = Box.of_voxels((10, 10, 24), (35, 35, 26), volume.grid)
    prompts = Prompts(items=(box, Point.at_voxel((5, 5, 5), volume.grid, label=2)), names={1: "brain"})
    result = model(volume, prompts=prompts, propagate=True)
    assert result.volume.grid.equals(volume.grid)
    assert np.flatnonzero((result.volume.voxels == 1).any((0, 1))).tolist() in ([24, 25, 26], [25], [24, 25], [25, 26])
    assert result.warnings[0] == UNTRAINED
    assert [s.name for s in result.statistics] == ["brain", "structure 2"]
    folder = result.save(tmp_path / "result")
    assert read_prompts(folder / "prompts.json") == prompts
    assert (folder / "preview.png").is_file()
    again = model(volume, prompts=prompts)
    assert again.manifest["prompting"]["encoded"] == 0, "every slice was encoded before"
    assert again.digest == result.digest
    agreed = model(volume, prompts=prompts, consensus=True)
    assert agreed.manifest["prompting"]["decoded"] > result.manifest["prompting"]["decoded"], "other planes were asked"
    assert model.plan(_case(volume), prompts).tiles >= 3


def _case(volume: Volume) -> object:
    from medseg_pipelines.case import read_case

    return read_case(volume)


def test_a_picture_from_end_to_end(model: Prompting, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    box = Box(first=(10, 5, 0), last=(40, 30, 0))
    result = model(Picture(pixels), prompts=Prompts(items=(box,), space="px"))
    assert result.labels.shape == (40, 60)
    assert (result.probability[0] > 0.5).sum() == (result.labels == 1).sum()
    assert "prompts.json" in {path.name for path in result.save(tmp_path / "result").iterdir()}
    with pytest.raises(UsageError, match="pixels of a picture"):
        model(Picture(pixels), prompts=Prompts(items=(box,)))


def test_pictures_equal_those_of_the_package(model: Prompting) -> None:
    try:
        load_torchvision()
        from segment_anything import SamPredictor, modeling
    except ModuleNotFoundError:
        pytest.skip("the package segment-anything is not installed")
    norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)
    sizes = {key: NETWORK[key] for key in ("embed_dim", "depth", "num_heads", "img_size", "out_chans")}
    encoder = modeling.ImageEncoderViT(
        **sizes, global_attn_indexes=(0,), window_size=14, norm_layer=norm, use_rel_pos=True
    )
    prompts = modeling.PromptEncoder(16, (4, 4), (64, 64), 4)
    transformer = modeling.TwoWayTransformer(2, 16, 2, 16)
    decoder = modeling.MaskDecoder(
        transformer_dim=16, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=16
    )
    peer = modeling.Sam(encoder, prompts, decoder).eval()
    peer.load_state_dict(model.prompted.network.state_dict())
    predictor = SamPredictor(peer)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    predictor.set_image(pixels)
    session = model.session(Picture(pixels))
    boxed, _, _ = predictor.predict(box=np.array([10, 5, 40, 30]), multimask_output=False, return_logits=True)
    ours = session.segment(Prompts(items=(Box(first=(10, 5, 0), last=(40, 30, 0)),), space="px")).logits
    assert ours is not None
    assert np.abs(ours[0] - boxed[0]).max() < 2e-3 * np.abs(boxed).max()  # kept in half precision
    three, sure, _ = predictor.predict(np.array([[20, 10]]), np.array([1]), return_logits=True)
    ours = session.segment(Prompts(items=(Point(at=(20, 10, 0)),), space="px")).logits
    best = three[sure.argmax()]
    assert ours is not None
    assert np.abs(ours[0] - best).max() < 2e-3 * np.abs(best).max()


def test_one_point_takes_the_best_of_three_masks_and_a_mask_is_a_prompt(model: Prompting) -> None:
    volume = head()
    session = model.session(volume)
    session.encode(25)
    point = session.segment(Prompts(items=(Point(at=(0, 0, 0)),)), propagate=False)
    assert point.encoded == 0
    assert point.decoded == 1
    ball = volume.with_voxels((volume.voxels > 300).astype(np.uint8), kind="labels")
    ball.voxels[:, :, :20] = 0
    ball.voxels[:, :, 23:] = 0
    masked = session.segment(Prompts(items=(Mask(volume=ball),)), propagate=False)
    assert sorted(masked.scores[1]) in ([20, 21, 22], [20], [21], [22])


def test_refusals(model: Prompting, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs prompts, got none"):
        model(head())
    point = Prompts(items=(Point(at=(0, 0, 0)),))
    with pytest.raises(UsageError, match="takes no noise level"):
        model(head(), prompts=point, noise=3.0)
    boxes = load_model(build_tiny_prompting(tmp_path, accepts=["boxes"]), device="cpu")
    with pytest.raises(UsageError, match="follow boxes, got other prompts"):
        boxes(head(), prompts=point)
    from medseg_pipelines.recipe import load_recipe

    with pytest.raises(UsageError, match="follows no prompts"):
        RunOptions(prompts=point).require_for(load_recipe("brain-structures"))


def test_missing_weights_say_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path))
    with pytest.raises(ModelMissing, match=r"medseg weights add sam-vit-b.*375 MB.*https://dl\.fbaipublicfiles"):
        load_model("sam")
    with pytest.raises(ModelMissing, match="weights add mine FILE"):
        load_model("medsam", weights="mine")
    with pytest.raises(UsageError, match="weights of its own"):
        load_model("brain-structures", weights="mine")


def test_embeddings_are_kept_by_content_within_bounds(tmp_path: Path) -> None:
    kept = Embeddings(tmp_path / "kept", limit=2 * 400)
    for key in ("a", "b", "c"):
        kept.get(key, lambda: torch.zeros(100))
    kept.get("c", lambda: torch.ones(100))
    assert (kept.made, kept.found) == (3, 1)
    assert kept.get("a", lambda: torch.ones(100)).sum() == 0, "it was forgotten in memory and found in the folder"
    assert Embeddings(tmp_path / "kept").get("b", lambda: torch.ones(100)).sum() == 0
    (tmp_path / "kept" / "b.safetensors").write_bytes(b"torn")
    assert Embeddings(tmp_path / "kept").get("b", lambda: torch.ones(100)).sum() == 100


def test_unknown_weights_are_said_to_be_unknown(model: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model._weight_doubts() == [UNTRAINED]
    monkeypatch.setattr(model, "_unknown", True)
    recipe = model.recipe.model_copy(update={"weights": model.recipe.weights.model_copy(update={"trained": True})})
    monkeypatch.setattr(model, "recipe", recipe)
    assert model._weight_doubts() == [UNKNOWN_ORIGIN]
