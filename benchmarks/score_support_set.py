"""What a network makes of four examples, against copying the mask of the example most like the query.

    python benchmarks/score_support_set.py --model RUN --data ../shared/data --picture score.png

The structures are those that training never named, the subjects those it never saw; examples come from one of them,
queries from another, all as synthetic slices of one contrast. Several --model give one column each, on the same tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from medseg.episodes import Anatomy, EpisodeOptions, Structure, draw_anatomical
from medseg.networks.sam2_sgp import Sam2Sgp, Segmented
from medseg.networks.sam2_sgp_training import overlap
from medseg.synthesis import SynthesisOptions
from medseg.weights import load_weights
from medseg_pipelines import nets
from medseg_pipelines.drawing import EDGE, MUTED, TEXT, Caption, draw_letters, font, framed, outline
from medseg_pipelines.recipe import load_recipe, recipe_folder
from medseg_pipelines.training import course_of
from medseg_pipelines.training.episodes import SupportCourse, SupportOptions, load_anatomies

EXAMPLES, QUERIES = 4, 4
STRUCTURES = ("hippocampus", "putamen", "brainstem")
PLANES = ("sagittal", "coronal", "axial")
LETTERS = (("A", "P", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))
TILE, GAP, NAMES, HEADS = 240, 10, 130, 30  # px
TRUE, FOUND = (80, 220, 120), (255, 90, 80)


@dataclass(frozen=True)
class Task:
    """One structure in one plane and contrast."""

    name: str
    examples: Tensor  # (4, 1, side, side)
    outlines: Tensor
    queries: Tensor
    targets: Tensor
    axis: int = 0  # that the slices are across


def tasks(
    options: SupportOptions, anatomies: list[Anatomy], structures: list[str], *, side: int, each: int
) -> Iterator[Task]:
    """Tasks on structures that training never names, examples and queries of different subjects."""
    names, groups = list(options.tissues), options.groups()
    synthesis = SynthesisOptions(**options.synthesis)
    how = EpisodeOptions(**{**options.episodes, "side": side, "away": 0.0, "same_contrast": 1.0})
    for name in structures:
        assert name in options.unnamed, f"training may ask for {name}"
        index = names.index(name)
        for number in range(each):
            generator = torch.Generator().manual_seed(9_000_000 + 1000 * index + number)
            shown, asked = anatomies[number % 2 :: 2], anatomies[1 - number % 2 :: 2]
            drawn = draw_anatomical(
                shown,
                groups,
                Structure((index,), None),
                synthesis,
                how,
                axis=number % 3,
                examples=EXAMPLES,
                queries=QUERIES,
                generator=generator,
                asked=asked,
            )
            images, masks = drawn.images[:, None], drawn.masks[:, None]
            yield Task(name, images[:EXAMPLES], masks[:EXAMPLES], images[EXAMPLES:], masks[EXAMPLES:], number % 3)


def held_out(course: SupportCourse, data: Path) -> list[Anatomy]:
    """The subjects that training never saw."""
    paths = [p for p in sorted(data.glob(course.options.labels)) if p.name in course.options.held_out]
    return load_anatomies(paths, course.options)


def network_of(model: str) -> Sam2Sgp:
    """The network of a model folder with its weights."""
    recipe, folder = load_recipe(model), recipe_folder(model)
    network = nets.build(recipe.network.name, recipe.network.options)
    assert isinstance(network, Sam2Sgp), "the model must segment by example"
    load_weights(network, folder / recipe.weights.file, sha256=recipe.weights.sha256)
    return network.eval()


@torch.no_grad()
def followed(network: Sam2Sgp, task: Task) -> Segmented:
    """What the network makes of the queries."""
    colour = (-1, 3, -1, -1)
    support = network.support(task.examples.expand(colour), task.outlines)
    features = network.features(task.queries.expand(colour))
    return network.segment(features, support.chosen(network.nearest(features.deep, support, EXAMPLES)))


def copied(task: Task) -> Tensor:
    """Masks of the examples most like the queries, (4, 1, side, side)."""
    return task.outlines[alike(task)] > 0


def alike(task: Task) -> Tensor:
    """The example whose grey values are most like each query's, (4,): what copying needs, whatever a network thinks."""
    flat = [x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (task.queries, task.examples)]
    queries, examples = (torch.nn.functional.normalize(x, dim=1) for x in flat)
    return (queries @ examples.mT).argmax(1)


def dice(mask: Tensor, target: Tensor) -> list[float]:
    """Of each query; those without the structure are left out."""
    pairs = zip(mask, target, strict=True)
    return [float(overlap(m[None].float(), t[None] > 0, threshold=0.5)[1]) for m, t in pairs if bool(t.any())]


def picture(rows: list[tuple[Task, Tensor]], path: Path) -> None:
    """One row per task: the examples, then the first query as it is (green) and as the network drew it (red)."""
    heads = [*(f"example {number}" for number in range(1, EXAMPLES + 1)), "query, true outline", "query, as found"]
    caption = Caption(
        title="Structures that training never named, outlined from four examples",
        subtitle="Synthetic slices; examples and query are of different subjects.",
    )
    canvas, top = framed(2 * EDGE + NAMES + len(heads) * (TILE + GAP), HEADS + len(rows) * (TILE + GAP), caption)
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        draw.text((EDGE + NAMES + column * (TILE + GAP), top), head, font=font(16), fill=MUTED)
    for number, (task, found) in enumerate(rows):
        y = top + HEADS + number * (TILE + GAP)
        score = dice(found[:1], task.targets[:1])
        told = f"{task.name}\n{PLANES[task.axis]}\nDice {f'{score[0]:.2f}' if score else 'undefined'}"
        draw.multiline_text((EDGE, y + TILE / 3), told, font=font(16), fill=TEXT)
        shown = [_drawn(*each, TRUE) for each in zip(task.examples, task.outlines, strict=True)]
        shown += [_drawn(task.queries[0], task.targets[0], TRUE), _drawn(task.queries[0], found[0], FOUND)]
        for column, tile in enumerate(shown):
            x = EDGE + NAMES + column * (TILE + GAP)
            canvas.paste(tile, (x, y))
            draw_letters(draw, (x, y, TILE, TILE), LETTERS[task.axis])
    canvas.save(path)


def _drawn(image: Tensor, mask: Tensor, color: tuple[int, int, int]) -> Image.Image:
    """A slice as radiologists look at it, (1, side, side) along two axes of RAS, with its outline."""
    grey, ids = ((255 * x[0].float().clamp(0, 1)).byte().numpy().T[::-1, ::-1] for x in (image, mask))
    enlarged = Image.fromarray(np.ascontiguousarray(grey)).resize((TILE, TILE), Image.Resampling.BICUBIC)
    pixels = np.array(enlarged.convert("RGB"))
    inside = np.asarray(Image.fromarray(np.ascontiguousarray(ids)).resize((TILE, TILE), Image.Resampling.NEAREST))
    pixels[outline(inside)] = color
    return Image.fromarray(pixels)


def main() -> None:
    """Print one row per structure, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the development data.")
    parser.add_argument("--model", action="append", help="Model folder; several give a column each.")
    parser.add_argument("--side", type=int, help="Pixels of a slice; default: as the first recipe says.")
    parser.add_argument("--each", type=int, default=12, help="Tasks per structure.")
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES), help="Tissues that training never names.")
    parser.add_argument("--picture", type=Path, help="PNG of one task per structure.")
    arguments = parser.parse_args()
    models = arguments.model or ["support-set"]
    course = course_of(models[0])
    assert isinstance(course, SupportCourse)
    recipe = load_recipe(models[0])
    assert recipe.task == "support-segmentation"
    anatomies = held_out(course, arguments.data)
    networks = [network_of(model) for model in models]
    scores: dict[str, list[list[float]]] = {}
    rows: dict[str, tuple[Task, Tensor]] = {}
    side = arguments.side or recipe.inference.side
    for task in tasks(course.options, anatomies, arguments.structures, side=side, each=arguments.each):
        results = [followed(network, task).logits > 0 for network in networks]
        columns = scores.setdefault(task.name, [[] for _ in range(len(models) + 1)])
        columns[0] += dice(copied(task), task.targets)
        for column, found in zip(columns[1:], results, strict=True):
            column += dice(found, task.targets)
        if task.axis == len(scores) % len(PLANES):  # one plane each
            rows.setdefault(task.name, (task, results[0]))
    heads = ["copied from the nearest example", *(Path(model).name for model in models)]
    print(f"| structure | queries | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for name, columns in scores.items():
        print(f"| {name} | {len(columns[0])} | {' | '.join(f'{np.mean(column):.3f}' for column in columns)} |")
    means = [np.mean([np.mean(columns[n]) for columns in scores.values()]) for n in range(len(heads))]
    print(f"| mean | | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    if arguments.picture:
        picture(list(rows.values()), arguments.picture)


if __name__ == "__main__":
    main()
