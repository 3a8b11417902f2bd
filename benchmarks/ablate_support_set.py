"""What the pseudo mask does for the result, by each of the ways that lead from it to the second decoder.

    python benchmarks/ablate_support_set.py --data ../shared/data

Encoder, matcher and first decoder stay as they ship, so that embedding, pseudo mask and box are the same for all. Four
second decoders start from one draw of random weights and see the same tasks in the same order, on anatomies that never
were: with the constant gate of the released code or the one that the pseudo mask works, each drawing the result anew or
correcting the pseudo mask. They are judged as in `score_support_set.py`. One core takes three minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from score_support_set import QUERIES, STRUCTURES, Task, copied, dice, followed, held_out, network_of, tasks
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam2_sgp import Sam2Sgp, Segmented
from medseg.networks.sam2_sgp_decoder import Guidance, SecondDecoder
from medseg.networks.sam2_sgp_training import guided_loss
from medseg_pipelines.training import course_of
from medseg_pipelines.training.episodes import SupportCourse, SupportOptions, SupportStage, TaskSampler

WAYS: tuple[tuple[Guidance, bool], ...] = (("released", False), ("gated", False), ("released", True), ("gated", True))
RATE, WARMUP = 1e-3, 20


def invented(options: SupportOptions, *, side: int, count: int) -> list[Task]:
    """Tasks on anatomies that never were: nothing in them can be learned by heart."""
    stage = SupportStage(steps=count, side=side, invented=1.0)
    changes = {"stages": [stage], "sequences": 0.0, "tasks": 1, "examples": (4, 4), "queries": QUERIES}
    drawn = TaskSampler([], options.model_copy(update=changes))
    samples = [drawn[number] for number in range(count)]
    return [Task("", s.examples[0], s.outlines[0], s.queries[0], s.targets[0]) for s in samples]


def finished(network: Sam2Sgp, decoder: SecondDecoder, corrects: bool, seen: Segmented) -> Segmented:
    """What a second decoder makes of all that comes before it."""
    network.mask_decoder2, network.corrects = decoder, corrects
    return network.finished(seen.embedding, seen.first, seen.pseudo, seen.box)


def taught(
    network: Sam2Sgp, way: tuple[Guidance, bool], seen: list[tuple[Segmented, Tensor]], *, steps: int, seed: int
) -> SecondDecoder:
    """A second decoder after its training; only it learns."""
    guidance, corrects = way
    config = network.config
    torch.manual_seed(seed)  # the gate adds numbers that start at 0, so that both draw the same weights
    decoder = SecondDecoder(
        config.channels,
        guidance=guidance,
        num_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp_dim,
        iou_hidden=config.iou_hidden,
    )
    if corrects and network.matcher is not None:
        network.matcher.silence(decoder.output_hypernetworks_mlps2)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=1e-5)
    order = torch.randint(len(seen), (steps,), generator=torch.Generator().manual_seed(seed))
    for step, number in enumerate(order.tolist()):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (0.4 * steps))
        found, target = seen[number]
        loss = guided_loss(finished(network, decoder.train(), corrects, found), target, 0, start=0.0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    return decoder.eval()


def mean_dice(found: list[tuple[str, list[float]]]) -> list[float]:
    """Of each structure, then the mean of these."""
    each = [
        float(np.mean(np.concatenate([scores for name, scores in found if name == wanted]))) for wanted in STRUCTURES
    ]
    return [*each, float(np.mean(each))]


def row(*cells: object) -> None:
    """Print a line of a Markdown table."""
    print(f"| {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in cells)} |", flush=True)


@torch.no_grad()
def judged(
    network: Sam2Sgp, decoder: SecondDecoder, corrects: bool, asked: list[tuple[Task, Segmented]]
) -> list[float]:
    """Dice of what a second decoder draws of structures that no training named."""
    drawn = [(task, finished(network, decoder, corrects, seen).logits > 0) for task, seen in asked]
    return mean_dice([(task.name, dice(mask, task.targets)) for task, mask in drawn])


def main() -> None:
    """Print one row per way, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the development data.")
    parser.add_argument("--model", default="support-set", help="Whose encoder and matcher.")
    parser.add_argument("--side", type=int, default=128, help="Pixels of a slice.")
    parser.add_argument("--tasks", type=int, default=120, help="To learn from.")
    parser.add_argument("--steps", type=int, default=600, help="Of each training, one task a step.")
    parser.add_argument("--each", type=int, default=6, help="Tasks per structure to be judged by.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    course, network = course_of(arguments.model), network_of(arguments.model).requires_grad_(False)
    assert isinstance(course, SupportCourse)
    drawn = tasks(
        course.options, held_out(course, arguments.data), list(STRUCTURES), side=arguments.side, each=arguments.each
    )
    asked = [(task, followed(network, task)) for task in drawn]
    learned = invented(course.options, side=arguments.side, count=arguments.tasks)
    seen = [(followed(network, task), task.targets) for task in learned]
    row("gate", "the result", *STRUCTURES, "mean")
    row(*["---"] * 6)
    row("", "copied from the nearest example", *mean_dice([(t.name, dice(copied(t), t.targets)) for t, _ in asked]))
    size = (arguments.side,) * 2
    alone = [(t.name, dice(F.interpolate(s.pseudo, size, mode="bilinear") > 0, t.targets)) for t, s in asked]
    row("", "is the pseudo mask", *mean_dice(alone))
    for guidance, corrects in WAYS:
        decoder = taught(network, (guidance, corrects), seen, steps=arguments.steps, seed=arguments.seed)
        gate = {"released": "constant", "gated": "working"}[guidance]
        told = "corrects the pseudo mask" if corrects else "is drawn anew"
        row(gate, told, *judged(network, decoder, corrects, asked))


if __name__ == "__main__":
    main()
