"""Ways to run the network of `brain-structures` on one window: time to the first result, time after it, agreement.

The plain network is the reference. OpenVINO is no dependency of this package; it is measured where it happens to be
installed and asked for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from model import model_folder
from torch import Tensor, nn

from medseg.networks import build_network
from medseg.weights import load_weights
from medseg_pipelines import engines
from medseg_pipelines.recipe import load_recipe

Predict = Callable[[Tensor], Tensor]
ALLOWED = 1e-3  # in probability


def compiled(network: nn.Module, window: Tensor) -> Predict:
    """TorchInductor with the weights frozen into the program, which lets it pack them."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    return torch.compile(network, dynamic=False)


def torchscript(network: nn.Module, window: Tensor) -> Predict:
    """Traced, frozen and optimised."""
    traced = torch.jit.trace(network, window)
    return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def openvino(network: nn.Module, window: Tensor) -> Predict:
    """Converted from PyTorch, then compiled for the CPU."""
    import openvino as ov  # pyright: ignore[reportMissingImports]  # measured where it happens to be installed

    model = ov.compile_model(ov.convert_model(network, example_input=window), "CPU")
    return lambda x: torch.from_numpy(model(x.numpy())[0])


def contenders() -> dict[str, Callable[[nn.Module, Tensor], Predict]]:
    """Every way by name; the first is the reference."""
    ways: dict[str, Callable[[nn.Module, Tensor], Predict]] = {
        "eager": lambda network, window: engines.prepare(network, engine="eager"),
        "channels-last": lambda network, window: engines.prepare(network, engine="channels-last"),
        "torchscript": torchscript,
    }
    if "compiled" in engines.available():
        ways["compiled"] = compiled
    if find_spec("openvino"):
        ways["openvino"] = openvino
    return ways


def load(folder: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network with its weights, and its window."""
    model = model_folder(folder)
    recipe = load_recipe(model)
    network = build_network(recipe.network.name, **recipe.network.options)
    load_weights(network, model / recipe.weights.file, sha256=recipe.weights.sha256)
    return network.eval().requires_grad_(False), recipe.inference.window


def row(name: str, make: Callable[[], Predict], window: Tensor, reference: Tensor | None, rounds: int) -> Tensor:
    """Measure one way and print its line; returns its class probabilities."""
    begin = time.monotonic()
    predict = make()
    scores = predict(window)
    first = time.monotonic() - begin
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.monotonic(), time.process_time()
        predict(window)
        walls.append(time.monotonic() - wall)
        processors.append(time.process_time() - processor)
    found = scores[:, :-1].softmax(1)  # the last score is the side
    reference = found if reference is None else reference
    worst = float((found - reference).abs().max())
    equal = float((found.argmax(1) == reference.argmax(1)).double().mean())
    cells = [name, f"{first:.1f} s", f"{median(walls):.2f} s", f"{median(processors):.2f} s"]
    print("| " + " | ".join([*cells, f"{worst:.1e}", f"{100 * equal:.4f} %"]) + " |", flush=True)
    if worst > ALLOWED:
        sys.exit(f"{name} must agree with eager to {ALLOWED} in probability, got {worst:.1e}")
    return found


def main() -> None:
    """One line for each way."""
    ways = contenders()
    parser = argparse.ArgumentParser(description="one window through every engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=list(ways), default=[n for n in ways if n != "openvino"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        network, side = load(Path(folder))
    window = torch.rand(1, 1, *side, generator=torch.Generator().manual_seed(0))
    print(f"{time.strftime('%Y-%m-%d')}, torch {version('torch')}, {arguments.threads} threads, window {side}\n")
    print("| engine | first result | wall | processor time | largest difference | equal labels |")
    print("|---|---|---|---|---|---|")
    reference = None
    with torch.inference_mode():
        for name in ["eager", *(n for n in arguments.engines if n != "eager")]:
            copy = deepcopy(network)
            reference = row(name, lambda c=copy, n=name: ways[n](c, window), window, reference, arguments.rounds)


if __name__ == "__main__":
    main()
