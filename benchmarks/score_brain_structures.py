"""Figures of the model card of `brain-structures`: agreement with references it never trained on.

    python benchmarks/score_brain_structures.py --data ../shared/data

The real T1 is compared with FreeSurfer, which is another program's opinion; the template with its published tissue
maps; the synthetic images with the label maps they were drawn from, of the subjects that the recipe holds out.
"""

import argparse
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import medseg
from medseg.geometry import to_ras, to_spacing
from medseg.synthesis import IGNORE, SynthesisOptions, synthesise
from medseg.volume import Volume
from medseg_pipelines.evaluation import Evaluation, Name, evaluate
from medseg_pipelines.recipe import recipe_folder
from medseg_pipelines.segmentation import Segmentation
from medseg_pipelines.training import course_of
from medseg_pipelines.training.synthetic import SyntheticCourse, load_subjects

MODEL = "brain-structures"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    image: Volume
    reference: Volume
    mapping: dict[str, object] | None = None


def real_t1(data: Path) -> list[Case]:
    """A FreeSurfer-labelled T1 at 1 mm and with 5 mm slices along each axis."""
    image = medseg.read(data / "volumes" / "t1_ps11_norm.mgz")
    reference = medseg.read(data / "volumes" / "t1_ps11_aparc_aseg.mgz", kind="labels")
    mapping = json.loads((recipe_folder(MODEL) / "maps" / "freesurfer.json").read_text(encoding="utf-8"))
    cases = [Case("real T1, FreeSurfer labels, 1 mm", image, reference, mapping)]
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        spacing = tuple(5.0 if i == axis else 1.0 for i in range(3))
        thick, step = to_spacing(to_ras(image)[0], spacing)
        moved = step.apply(to_ras(reference)[0])
        cases.append(Case(f"real T1, FreeSurfer labels, 5 mm {plane}", thick, moved, mapping))
    return cases


def synthetic(data: Path) -> list[Case]:
    """Images of held-out label maps in two contrasts, at 1 mm and with 5 mm slices."""
    course = course_of(MODEL)
    assert isinstance(course, SyntheticCourse)
    options = course.options
    held_out = [data / "brain-labels" / name for name in options.held_out]
    tissues = [t.tissue() for t in options.tissues.values()]
    table = torch.tensor(medseg.load_model(MODEL).recipe.decode.table)
    cases = []
    for number, subject in enumerate(load_subjects(held_out, options)):
        for contrast in ("random", "t1"):
            for name, isotropic in (("1 mm", 1.0), ("thick slices", 0.0)):
                drawn = SynthesisOptions(
                    crop=(160, 192, 160),
                    shift=8.0,
                    contrasts={contrast: 1.0},
                    isotropic=isotropic,
                    thick=(5.0, 5.0),
                    coarse=(1.0, 1.0),
                    cut=0.0,
                )
                sample = synthesise(subject, tissues, drawn, torch.Generator().manual_seed(100 + number))
                target = sample.target.long().masked_fill(sample.target == IGNORE, 0)
                labels = table[target, (sample.side == 1).long()].numpy().astype(np.uint8)
                title = f"synthetic {contrast}, {options.held_out[number][-9:-7]}, {name}"
                image = Volume(sample.image.numpy(), np.eye(4))
                cases.append(Case(title, image, Volume(labels, np.eye(4), kind="labels")))
    return cases


def template() -> list[Case]:
    """The MNI152 template against its grey and white matter maps, each at least one half."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "datasets" / "data"
    maps = [folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")]
    image, grey, white = (medseg.read(path) for path in maps)
    scale = max(float(grey.voxels.max()), float(white.voxels.max()))
    tissue = np.where(white.voxels > scale / 2, 2, np.where(grey.voxels > scale / 2, 1, 0)).astype(np.uint8)
    mapping: dict[str, object] = {
        "1": ["cerebral cortex", "deep grey matter", "hippocampus and amygdala", "cerebellum cortex"],
        "2": ["cerebral white matter", "cerebellum white matter", "brainstem", "ventral diencephalon"],
    }
    return [Case("MNI152 template, grey and white matter", image, Volume(tissue, image.affine, kind="labels"), mapping)]


def score(model: Segmentation, case: Case) -> Evaluation:
    """Segment the image of a case and compare."""
    labels = model(case.image, force_scope=True).volume
    names = [Name(id=label.id, name=label.name, structure=label.structure) for label in model.recipe.labels]
    return evaluate(labels, case.reference, names=names, mapping=case.mapping)


def main() -> None:
    """Print one table of means and one of structures, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the development data.")
    parser.add_argument("--only", default="", help="Only cases whose name holds this.")
    arguments = parser.parse_args()
    model = medseg.load_model(MODEL)
    rows = []
    print("| case | mean Dice | mean HD95 (mm) | structures |\n|---|---|---|---|")
    for case in [*real_t1(arguments.data), *template(), *synthetic(arguments.data)]:
        if arguments.only not in case.name:
            continue
        found = score(model, case)
        print(f"| {case.name} | {found.mean_dice:.3f} | {found.mean_hd95_mm:.2f} | {found.counted} |", flush=True)
        rows.append((case.name, found))
    print("\n| case | structure | Dice | HD95 (mm) | volume error |\n|---|---|---|---|---|")
    for name, found in rows:
        for s in found.scores:
            print(f"| {name} | {s.name} | {s.dice:.3f} | {s.hd95_mm:.2f} | {s.volume_error:+.1%} |")


if __name__ == "__main__":
    main()
