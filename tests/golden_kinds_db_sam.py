"""Vectors of SAM and of DB-SAM: whole models, and what surrounds attention and sampling in them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from golden_vectors import Tensors, Vector, kind, weights, with_gradients
from medseg.networks import db_sam, db_sam_branch, sam


def sam_changes(vector: Vector) -> dict[str, Any]:
    """Fields of `SamConfig` as the metadata name them."""
    config = vector.config
    decoder = config.get("decoder", {})
    names = ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "window_size", "out_chans", "mask_in_chans")
    changes = {name: config[name] for name in (*names, "mlp_ratio") if name in config}
    renamed = {"depth": "decoder_depth", "num_heads": "decoder_heads", "mlp_dim": "decoder_mlp_dim"}
    changes |= {renamed.get(name, name): value for name, value in decoder.items()}
    changes["norm_eps"] = config.get("vit_norm_eps", config.get("norm_eps", 1e-6))
    return changes | {"global_attn_indexes": tuple(config["global_attn_indexes"])}


def is_sam(vector: Vector) -> bool:
    return "mask_decoder.iou_token.weight" in vector.state and not any(".adapter." in key for key in vector.state)


@kind("db-sam", is_sam)
def sam_model(vector: Vector) -> Tensors:
    network, x = sam.Sam(**sam_changes(vector)), vector.inputs
    vector.load(network)
    originals = vector.config.get("original_sizes", {})
    images = sorted(key for key in x if key.startswith("image"))
    points = (x["point_coords"], x["point_labels"])
    calls = {
        "points": (0, {"points": points, "multimask": True}),
        "box_mask": (1, {"boxes": x["boxes"], "masks": x["mask_inputs"]}),
        "points_box": (1, {"points": points, "boxes": x["boxes"], "multimask": True}),
    }
    with torch.no_grad():
        embeddings = torch.cat([network.encode(network.preprocess(x[key][None])) for key in images])
        grid = (embeddings.shape[2], embeddings.shape[3])
        found = {"image_embeddings": embeddings, "dense_pe": network.prompt_encoder.dense_pe(grid)}
        for name, (number, prompts) in calls.items():
            if f"{name}.low_res_logits" not in vector.outputs:
                continue
            answer = network.decode(embeddings[number : number + 1], **prompts)
            prompts.pop("multimask", None)
            padded = tuple(x[images[number]].shape[-2:])
            found |= {f"{name}.low_res_logits": answer.logits, f"{name}.iou": answer.iou}
            found[f"{name}.sparse"] = network.prompt_encoder(grid, **prompts)[0]
            original = tuple(originals.get(name, padded))
            found[f"{name}.logits_original"] = network.enlarge(answer.logits, padded, original)
    return found


def count(state: Tensors, pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` among the key names."""
    return len({found[1] for key in state if (found := re.search(pattern, key))})


def db_sam_changes(vector: Vector) -> dict[str, Any]:
    """Fields of `DbSamConfig` as the metadata name them."""
    config, state = vector.config, vector.state
    same = ("fusion", "fusion_reduction", "fusion_ffn_ratio", "deform_heads", "deform_points", "expand_ratio")
    changes = sam_changes(vector) | {name: config[name] for name in (*same, "antialias") if name in config}
    changes |= {name: tuple(config[name]) for name in ("levels", "prior_widths") if name in config}
    if "pyramid_sizes" in config:
        changes["pyramid"] = tuple(config["img_size"] // side for side in config["pyramid_sizes"])
    position = config["vit_conv_position"]
    return changes | {
        "branches": config["adapter"],
        "stages": tuple((first, last) for first, last in config["interaction_indexes"]),
        "channel_attention": None if position == "None" else position,
        "fusion_inputs": count(state, r"aggregation\.conv_fc\.(\d+)\."),
    }


@kind("db-sam", lambda vector: any(".adapter." in key for key in vector.state))
def db_sam_model(vector: Vector) -> Tensors:
    network, x = db_sam.DbSam(**db_sam_changes(vector)), vector.inputs
    vector.load(network)
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    parts = tuple(vector.meta.get("frozen_parts", ()))
    if parts and frozen != {name for name, _ in network.named_parameters() if name.startswith(parts)}:
        raise ValueError(f"the frozen parts are not {parts}")
    with torch.no_grad():
        pixels = network.preprocess(x["images"].permute(0, 3, 1, 2))
        embeddings = network.encode(pixels)
        if not torch.equal(network.image_encoder(pixels, network.image_encoder.first_stage(pixels)), embeddings):
            raise ValueError("a kept first stage changes the embedding")
        found = {"image_embeddings": embeddings, "low_res_logits": network(x["images"], x["boxes"]).logits}
        for name in vector.outputs:
            number = re.fullmatch(r"multimask_low_res_logits_image(\d+)", name)
            if number:
                at = slice(int(number[1]), int(number[1]) + 1)
                answer = network.decode(embeddings[at], boxes=x["boxes"][at], multimask=True)
                found |= {name: answer.logits, f"iou_image{number[1]}": answer.iou}
    return found


@kind("db-sam", weights("pre_norm", "conv_dw", "se", "conv_pw"))
def db_sam_channel_attention(vector: Vector) -> Tensors:
    config, dim = vector.config, len(vector.state["pre_norm.weight"])
    options = {name: config[name] for name in ("expand_ratio", "se_ratio") if name in config}
    module = vector.load(db_sam_branch.ChannelAttention(dim, **options))
    return with_gradients(vector, module, lambda x: {"y": module(x["x"])})


@kind("db-sam", lambda vector: any(re.fullmatch(r"lcb\d+\.1\.conv\.weight", key) for key in vector.state))
def db_sam_spatial_prior(vector: Vector) -> Tensors:
    state, config = vector.state, vector.config
    levels = sorted({int(key[3]) for key in state})
    first = f"lcb{levels[0]}"
    widths = [len(state[f"{first}.{number}.conv.weight"]) for number in (1, 3, 5)]
    side, found = vector.inputs["x"].shape[2], {}
    sizes = config["pyramid_sizes"]
    sizes = sizes if isinstance(sizes, dict) else {str(level): size for level, size in enumerate(sizes, start=1)}
    pyramid = [side // sizes.get(str(level), side) for level in range(1, 5)]
    for antialias, ending in ((True, ""), (False, ".no_antialias")):
        options = {"pyramid": pyramid, "antialias": antialias}
        module = vector.load(db_sam_branch.SpatialPrior(len(state[f"{first}.8.weight"]), levels, widths, **options))
        with torch.no_grad():
            maps = module(vector.inputs["x"])
        found |= {f"c{level}{ending}": x for level, x in zip(levels, maps, strict=True)}
    return found


FUSION_UNITS = {"pointwise": "DANE3", "spatial_channel": "DANE", "multi_level": "MultiConvFeatsDANE"}


@kind(
    "db-sam", lambda vector: bool(vector.state) and {key.split(".")[0] for key in vector.state} <= FUSION_UNITS.keys()
)
def db_sam_fusion(vector: Vector) -> Tensors:
    config, found = vector.config, {}
    every = [vector.inputs[key] for key in sorted(vector.inputs) if re.fullmatch(r"conv\d+", key)]
    for name in sorted({key.split(".")[0] for key in vector.state}):
        unit = replace(vector.unit(name), inputs=vector.inputs)
        options = {"reduction": config["reduction"], "ffn_ratio": config["ffn_ratio"]}
        inputs = count(unit.state, r"conv_fc\.(\d+)\.")
        if inputs:
            options["inputs"] = inputs
        module = unit.load(db_sam_branch.FUSIONS[FUSION_UNITS[name]](len(unit.state["ffn_norm.weight"]), **options))
        with torch.no_grad():
            found[f"{name}.y"] = module(vector.inputs["vit"], every if inputs else every[:1])
    return found


def bilateral(vector: Vector) -> bool:
    return any(key.startswith("vit.attn.") for key in vector.state)


@kind("db-sam", bilateral)
def db_sam_bilateral(vector: Vector) -> Tensors:
    config, x = vector.config, {key: x.permute(0, 2, 3, 1) for key, x in vector.inputs.items()}
    names = sorted(key for key in x if key.startswith("conv"))
    options = {"num_points": config["n_points"], "expand_ratio": config["expand_ratio"]}
    found = {}
    directions = {"vit": (["vit"], names), "conv": (names, ["vit"])}
    for side, (readers, read) in directions.items():
        unit = replace(vector.unit(side), inputs=vector.inputs)
        module = db_sam.CrossAttention(x["vit"].shape[3], config["num_heads"], len(read), **options)
        unit.load(module)
        with torch.no_grad():
            maps = module([x[name] for name in readers], [x[name] for name in read])
        found |= {name: y.permute(0, 3, 1, 2) for name, y in zip(readers, maps, strict=True)}
    return found


@kind("db-sam", lambda vector: not vector.state and {"logits", "target"} <= vector.inputs.keys())
def db_sam_loss(vector: Vector) -> Tensors:
    config, target = vector.config, vector.inputs["target"]
    logits = vector.inputs["logits"].clone().requires_grad_()
    options = {"dice": config.get("lambda_dice", 1), "entropy": config.get("lambda_ce", 1), "smooth": config["smooth"]}
    loss = db_sam.box_loss(logits, target, **options)
    loss.backward()
    dice = db_sam.squared_dice_loss(logits, target, smooth=config["smooth"])
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    found = {"loss": loss, "dice_term": dice, "ce_term": entropy}
    gradient = logits.grad
    return {name: x.detach()[None] for name, x in found.items()} | (
        {} if gradient is None else {"grad_logits": gradient}
    )
