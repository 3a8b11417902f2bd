"""What each kind of vector holds: how to recognise it, which module it belongs to, and what to compute.

Modules are built from the file's shapes and configuration, so that other sizes of the same kind work. A new system
adds its functions here, or in a module of its own that `golden.py` imports.
"""

from __future__ import annotations

import re

from golden_vectors import Tensors, Vector, kind, weights, with_gradients
from medseg import wavelets
from medseg.networks import db_sam, disgan, sam
from medseg_kernels import deform_sample


def table_grid(state: Tensors, part: str = "") -> tuple[int, int]:
    """Grid that a pair of relative-position tables was made for."""
    rows, columns = ((len(state[f"{part}rel_pos_{axis}"]) + 1) // 2 for axis in "hw")
    return rows, columns


@kind("db-sam", weights("qkv", "proj", "rel_pos_h", "rel_pos_w"))
def sam_attention(vector: Vector) -> Tensors:
    dim, bias = vector.state["proj.weight"].shape[0], "qkv.bias" in vector.state
    module = sam.Attention(dim, vector.config["num_heads"], table_grid(vector.state), qkv_bias=bias)
    vector.load(module)
    return with_gradients(vector, module, lambda x: {"y": module(x["x"])})


@kind("db-sam", weights("norm1", "attn", "norm2", "mlp"))
def sam_block(vector: Vector) -> Tensors:
    config, dim = vector.config, len(vector.state["norm1.weight"])
    options = {"window": config["window_size"], "norm_eps": config["norm_eps"], "mlp_ratio": config["mlp_ratio"]}
    module = vector.load(sam.Block(dim, config["num_heads"], table_grid(vector.state, "attn."), **options))
    return with_gradients(vector, module, lambda x: {"y": module(x["x"])})


def level_shapes(vector: Vector) -> list[tuple[int, int]]:
    return [(int(rows), int(columns)) for rows, columns in vector.inputs["spatial_shapes"].tolist()]


@kind("db-sam", lambda vector: not vector.state and "sampling_locations" in vector.inputs)
def deformable_sampling(vector: Vector) -> Tensors:
    shapes = level_shapes(vector)

    def run(x: Tensors) -> Tensors:
        return {"y": deform_sample(x["value"], shapes, x["sampling_locations"], x["attention_weights"])}

    return with_gradients(vector, None, run)


@kind("db-sam", weights("sampling_offsets", "attention_weights", "value_proj", "output_proj"))
def deformable_attention(vector: Vector) -> Tensors:
    shapes, state, config = level_shapes(vector), vector.state, vector.config
    heads = config["n_heads"]
    points = len(state["attention_weights.bias"]) // (heads * len(shapes))
    module = db_sam.DeformableAttention(state["value_proj.weight"].shape[0], heads, len(shapes), points)
    vector.load(module)

    def run(x: Tensors) -> Tensors:
        locations, weights = module.points(x["query"], x["reference_points"], shapes)
        y = module(x["query"], x["reference_points"], x["input_flatten"], shapes)
        return {"y": y, "sampling_locations": locations, "attention_weights": weights}

    return with_gradients(vector, module, run)


@kind("disgan", lambda vector: not vector.state and any(re.fullmatch(r"coef\d*", key) for key in vector.outputs))
def disgan_transform(vector: Vector) -> Tensors:
    def run(x: Tensors) -> Tensors:
        found = {}
        for key in [key for key in x if re.fullmatch(r"x\d*", key)]:
            bands = wavelets.volume_bands(x[key])
            whole = wavelets.from_volume_bands(bands)
            found[f"coef{key[1:]}"] = bands
            stored = vector.outputs.get(f"inverse{key[1:]}", whole)
            found[f"inverse{key[1:]}"] = whole[tuple(slice(side) for side in stored.shape)]
        return found

    return with_gradients(vector, None, run)


@kind("disgan", lambda vector: all("conv1x1_" in key for key in vector.state) and bool(vector.state))
def disgan_wavelet_units(vector: Vector) -> Tensors:
    units = sorted({key.split(".conv1x1_")[0] for key in vector.state if ".conv1x1_" in key})
    found = {}
    for name in units or [""]:
        unit = vector.unit(name) if name else vector
        out, inner = unit.state["conv1x1_low.weight"].shape[:2]
        module = unit.load(disgan.WaveletUnit(inner, out))
        got = with_gradients(
            unit, module, lambda x, module=module: dict(zip(("low", "high"), module(x["x"]), strict=True))
        )
        found |= {f"{name}.{key}" if name else key: x for key, x in got.items()}
    return found
