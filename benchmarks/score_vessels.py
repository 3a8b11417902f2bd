"""Scores of the model `vessels` on fundus images it never saw, beside the Frangi filter at its best.

    python benchmarks/score_vessels.py --data ../shared/data [--model vessels] [--pictures FOLDER]

Data: the 12 STARE panels of the developer pack with their manual masks. Training saw none of them; im0001 and im0002
served to choose threshold and working size, the other ten are the test. One photograph of CHASE_DB1, in colour, has the
mask of another model for reference and stands apart. Scores count pixels inside the field of view
that is found in each picture. The Frangi filter (scikit-image) gets every advantage: the picture as it is and freed of
uneven light, several ranges of widths, and the one threshold that is best on the very images it is judged by.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.filters import frangi

from medseg.fundus import diameter, field_of_view, flatten_light
from medseg.io.pictures import read_mask, read_picture
from medseg_pipelines import load_model
from medseg_pipelines.picture_evaluation import PictureEvaluation, score_picture
from medseg_pipelines.picture_segmentation import PictureSegmentation

VALIDATION = ("im0001", "im0002")
_WIDTHS = ((1.0, 2.0, 3.0), (2.0, 3.0, 4.0, 5.0), (3.0, 4.0, 5.0, 6.0), (4.0, 5.0, 6.0, 7.0), (3.0, 5.0, 7.0, 9.0))
_FLATTEN = 0.04  # of the field's diameter
_COLUMNS = [field.name for field in fields(PictureEvaluation) if field.name != "notes"]


class Image:
    """One picture with its truth and its field."""

    def __init__(self, path: Path) -> None:
        kind = "_image" if "_image" in path.name else "_rgb"
        self.name = path.stem.removesuffix(kind).split("_")[1]
        self.picture = read_picture(path)
        self.truth = read_mask(path.with_name(path.name.replace(kind, "_vessels")))
        self.field = field_of_view(self.picture)


def frangi_of(image: Image, widths: tuple[float, ...], *, flat: bool) -> NDArray[np.float32]:
    """The response of the filter to dark lines, (H, W)."""
    plane = image.picture.unit_planes()[1]
    if flat:
        plane = flatten_light(plane, image.field, _FLATTEN * diameter(image.field))
    else:
        plane = np.where(image.field, plane, plane[image.field].mean())
    found = frangi(plane, sigmas=widths, black_ridges=True)  # pyright: ignore[reportArgumentType] # any iterable will do
    return np.asarray(found, np.float32) * image.field


def best_frangi(images: list[Image]) -> tuple[str, list[PictureEvaluation]]:
    """The setting and threshold with the best mean F1 on these images, and its scores."""
    best: tuple[float, str, list[PictureEvaluation]] = (-1.0, "", [])
    for widths, flat in product(_WIDTHS, (False, True)):
        responses = [frangi_of(image, widths, flat=flat) for image in images]
        inside = np.concatenate([r[image.field] for r, image in zip(responses, images, strict=True)])
        for share in np.arange(0.04, 0.25, 0.01):
            threshold = float(np.quantile(inside, 1 - share))
            pairs = zip(responses, images, strict=True)
            f1 = float(np.mean([_f1(r[image.field] > threshold, image.truth[image.field]) for r, image in pairs]))
            if f1 > best[0]:
                pairs = zip(responses, images, strict=True)
                scores = [score_picture(r > threshold, i.truth, i.field, r) for r, i in pairs]
                where = "flattened" if flat else "as it is"
                best = (f1, f"sigmas {widths}, picture {where}, threshold {threshold:.3g}", scores)
    return best[1], best[2]


def _f1(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def main() -> None:
    """Print one table: every image, then the means of validation and test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="vessels")
    parser.add_argument("--pictures", type=Path, help="Folder for the previews; it must exist.")
    args = parser.parse_args()
    folder = args.data / "fundus"
    images = [Image(path) for path in sorted(folder.glob("STARE_*_image.png"))]
    apart = [Image(path) for path in sorted(folder.glob("CHASEDB1_*_rgb.png"))]
    model = load_model(args.model, device="cpu")
    if not isinstance(model, PictureSegmentation):
        parser.error(f"--model must name a model that segments pictures, got {args.model}")
    ours = {}
    for image in images + apart:
        result = model(image.picture)
        ours[image.name] = score_picture(result.labels > 0, image.truth, image.field, result.probability[0])
        if args.pictures:
            result.preview().save(args.pictures / f"{image.name}.png")
    test = [image for image in images if image.name not in VALIDATION]
    held = [image for image in images if image.name in VALIDATION]
    print(f"{'':<28}" + "".join(f"{name:>13}" for name in _COLUMNS))
    for image in images:
        role = "validation" if image.name in VALIDATION else "test"
        _print(f"{image.name} {role}", [ours[image.name]])
    for image in apart:
        _print(f"{image.name} against a model", [ours[image.name]])
    setting, frangi_test = best_frangi(test)
    _print(f"{args.model}, validation ({len(held)})", [ours[image.name] for image in held])
    _print(f"{args.model}, test ({len(test)})", [ours[image.name] for image in test])
    _print(f"Frangi filter, test ({len(test)})", frangi_test)
    print(f"Frangi filter at its best on the test images: {setting}")


def _print(name: str, scores: list[PictureEvaluation]) -> None:
    means = [float(np.mean([getattr(score, column) for score in scores])) for column in _COLUMNS]
    print(f"{name:<28}" + "".join(f"{mean:>13.3f}" for mean in means))


if __name__ == "__main__":
    main()
