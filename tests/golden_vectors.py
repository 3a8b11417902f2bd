"""Vector files: reading them, the registry of their kinds, gradients as they name them, and their tolerances."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

Tensors = dict[str, Tensor]
NOTHING = 1e-6  # a gradient whose largest entry is below this counts as zero, in files without tolerances by name
GRADIENT = 1e-4  # allowed error of a module's gradient in those files, relative to its largest entry


class UninterpretableError(Exception):
    """The file is no vector file, or no kind of it is known."""


@dataclass(frozen=True)
class Vector:
    """One file, or one unit of it: tensors by name, without the `state.`, `input.` and `output.` in front."""

    meta: Mapping[str, Any]
    state: Tensors
    inputs: Tensors
    outputs: Tensors

    @property
    def config(self) -> Mapping[str, Any]:
        return self.meta["config"]

    def unit(self, name: str) -> Vector:
        """The part whose names begin with `name` and a dot."""
        parts = [
            {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
            for tensors in (self.state, self.inputs, self.outputs)
        ]
        return Vector(self.meta, *parts)

    def load(self, module: nn.Module) -> nn.Module:
        """Fill a module with the file's weights, every key used and none missing; position tables stay our own."""
        own = {key: x for key, x in module.state_dict().items() if key.endswith("rope.rotations")}
        module.load_state_dict(self.state | own)
        return module.to(self.device).eval()

    @property
    def device(self) -> torch.device:
        return next(iter((self.inputs or self.state).values())).device


Compute = Callable[[Vector], Tensors]
Recognise = Callable[[Vector], bool]
KINDS: list[tuple[str, Recognise, Compute]] = []


def kind(system: str, recognise: Recognise) -> Callable[[Compute], Compute]:
    """Register a function that computes a vector's outputs, for the files of a system that `recognise` accepts."""

    def register(compute: Compute) -> Compute:
        KINDS.append((system, recognise, compute))
        return compute

    return register


def weights(*names: str, inputs: str | None = None) -> Recognise:
    """Accept vectors whose weights have exactly these first names, and whose inputs include `inputs`."""

    def recognise(vector: Vector) -> bool:
        found = {key.split(".")[0] for key in vector.state}
        return found == set(names) and (inputs is None or inputs in vector.inputs)

    return recognise


def read(path: Path, device: str) -> Vector:
    """Read a file; weights that are not stored are drawn, halves are widened."""
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["golden"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 safe_open is no mapping
    except Exception as error:
        raise UninterpretableError(f"not a vector file ({type(error).__name__}: {error})") from error
    parts: dict[str, Tensors] = {"state": {}, "input": {}, "output": {}}
    for key, x in tensors.items():
        part, _, name = key.partition(".")
        if part in parts:
            half = x.dtype in (torch.float16, torch.bfloat16)
            parts[part][name] = (x.float() if half else x).to(device)
    if not meta.get("state_stored", True) and "state_shapes" in meta:
        drawn = recipe(meta["state_shapes"], meta["seed"], meta.get("output_gain", 1.0))
        parts["state"] |= {key: x.to(device) for key, x in drawn.items() if key not in parts["state"]}
    outputs = parts["output"] or meta.get("keys")  # a list of key names is checked by loading, it has no outputs
    if not {"config", "tolerance"} <= meta.keys() or not outputs:
        raise UninterpretableError("metadata without config or tolerance, or no outputs")
    return Vector(meta, parts["state"], parts["input"], parts["output"])


def recipe(shapes: Mapping[str, list[int]], seed: int, output_gain: float) -> Tensors:
    """Weights that are not stored: noise seeded by the key's checksum, scaled by what kind of weight it is."""
    state = {}
    for key, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(key.encode()) ^ seed).standard_normal(int(np.prod(shape)))
        z, last = noise.reshape(shape), key.rsplit(".", 1)[-1]
        if last in ("num_batches_tracked", "weight_sv"):
            z = np.full(shape, float(last == "weight_sv"))
        elif last == "running_var":
            z = np.exp(0.25 * z)
        elif last in ("running_mean", "bias", "pos_embed", "pos_embed_window"):
            z = 0.1 * z
        elif last in ("beta", "gamma", "lambda_ra", "lambda_wa"):
            z = 0.3 * z
        elif last == "weight" and len(shape) == 1:
            z = 1 + 0.1 * z
        elif last == "weight":
            z = z / np.sqrt(np.prod(shape[1:])) * (output_gain if key.startswith("output_layer") else 1.0)
        state[key] = torch.from_numpy(np.asarray(z)).to(torch.int64 if last == "num_batches_tracked" else torch.float32)
    return state


def with_gradients(vector: Vector, module: nn.Module | None, run: Callable[[Tensors], Tensors]) -> Tensors:
    """Outputs of `run`, and the gradients the file holds, named as it names them.

    `input.grad_output` or `input.grad_<output>` are the directions; `output.grad_<name>`, `output.grad.<name>` and
    `output.grad.input.<name>` the gradients.
    """
    wanted = {key: re.sub(r"^grad[._]", "", key) for key in vector.outputs if re.match(r"grad[._]", key)}
    leaves = {key: x.clone().requires_grad_(x.is_floating_point() and bool(wanted)) for key, x in vector.inputs.items()}
    found = run(leaves)
    if not wanted:
        return found
    directions = {"y": "grad_output"} if "grad_output" in vector.inputs else {key: f"grad_{key}" for key in found}
    torch.autograd.backward(
        [(found[out] * vector.inputs[grad]).sum() for out, grad in directions.items() if grad in vector.inputs]
    )
    gradients = {key: x.grad for key, x in leaves.items()} | {f"input.{key}": x.grad for key, x in leaves.items()}
    if module is not None:
        gradients |= {key: x.grad for key, x in module.named_parameters()}
    for key, name in wanted.items():
        gradient = gradients.get(name)
        if gradient is not None:
            found[key] = gradient
    return found


def allowed(vector: Vector, name: str, want: Tensor) -> Tensor:
    """Largest error of each entry of an output, by the rule of the file."""
    tolerance = vector.meta["tolerance"]
    rule = tolerance.get("float32") or tolerance["float64"]
    largest = want.abs().max() if want.numel() else want.new_zeros(())
    if "atol_times_max_abs_output" in rule:
        return (rule["atol_times_max_abs_output"].get(name, 1e-5) * largest).expand(want.shape)
    if name.startswith("grad"):
        whole = 10 if "loss" in vector.outputs else 1  # rounding adds up over the depth of a whole model
        return (whole * GRADIENT * largest if largest >= NOTHING else largest.new_tensor(NOTHING)).expand(want.shape)
    return rule["atol"] + rule["rtol"] * want.abs()


def compare(vector: Vector, found: Tensors) -> tuple[float, str]:
    """Worst error over tolerance, and the output it belongs to; an output that was not computed counts as infinite."""
    worst, where = 0.0, "-"
    for name, want in vector.outputs.items():
        got = found.get(name)
        if got is None or got.shape != want.shape:
            return float("inf"), f"{name} {'not computed' if got is None else f'has shape {tuple(got.shape)}'}"
        if not want.numel():
            continue
        want = want.double()
        error = (got.detach().double() - want).abs() / allowed(vector, name, want).clamp(min=torch.finfo().tiny)
        error[(want.isnan() & got.isnan())] = 0
        ratio = float(error.nan_to_num(nan=float("inf")).max())
        if ratio > worst:
            worst, where = ratio, name
    return worst, where


def as_float64(found: Tensors) -> Tensors:
    """Outputs under the names of their double precision twins, too."""
    return found | {f"{name}_float64": x for name, x in found.items()}
