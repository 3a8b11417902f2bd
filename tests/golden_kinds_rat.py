"""RAT's kinds of vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden_vectors import Tensors, Vector, as_float64, kind, weights, with_gradients
from medseg import losses, metrics, regions
from medseg.networks import rat
from medseg.networks.blocks import ChannelNorm


@kind("rat", weights("qkv", "project_out", inputs="region_map"))
def rat_region_attention(vector: Vector) -> Tensors:
    channels, heads = vector.state["project_out.weight"].shape[0], vector.config["num_heads"]
    module = vector.load(rat.RegionAttention(channels, heads))
    labels = vector.inputs["region_map"].long()
    found = with_gradients(vector, module, lambda x: {"y": module(x["x"], labels)})
    flat = labels.flatten(1)
    found["additive_mask"] = (flat[:, :, None] != flat[:, None]) * vector.config.get("mask_value", -1000.0)
    return as_float64(found)


@kind("rat", weights("qkv", "proj_out"))
def rat_window_attention(vector: Vector) -> Tensors:
    config = vector.config
    channels = vector.state["proj_out.weight"].shape[0]
    module = vector.load(rat.WindowAttention(channels, config["num_heads"], config["window_size"]))
    return as_float64(with_gradients(vector, module, lambda x: {"y": module(x["x"])}))


@kind("rat", weights("weight", "bias"))
def rat_channel_norm(vector: Vector) -> Tensors:
    module = vector.load(ChannelNorm(len(vector.state["weight"]), eps=vector.config.get("eps", 1e-6)))
    return as_float64(with_gradients(vector, module, lambda x: {"y": module(x["x"])}))


@kind("rat", lambda vector: "sca.1.weight" in vector.state)
def rat_conv_block(vector: Vector) -> Tensors:
    module = vector.load(rat.ConvBlock(vector.state["beta"].shape[1]))
    return as_float64(with_gradients(vector, module, lambda x: {"y": module(x["inp"])}))


@kind("rat", lambda vector: "lambda_ra" in vector.state or "layers.0.lambda_ra" in vector.state)
def rat_layer_or_group(vector: Vector) -> Tensors:
    config = vector.config
    if "lambda_ra" in vector.state:
        channels = vector.state["lambda_ra"].shape[1]
        module = vector.load(rat.Layer(channels, config["num_heads"], config["window_size"], config["mlp_ratio"]))
    else:
        channels = vector.state["layers.0.lambda_ra"].shape[1]
        depth = len({key.split(".")[1] for key in vector.state if key.startswith("layers.")})
        module = vector.load(rat.Group(channels, config["num_heads"], config["window_size"], depth))
    labels = vector.inputs["region_map"].long()
    return as_float64(with_gradients(vector, module, lambda x: {"y": module(x["x"], labels)}))


def numbers(state: Tensors, prefix: str, level: int) -> int:
    """How many different numbers stand at a level of the names under a prefix."""
    return len({key.split(".")[level] for key in state if key.startswith(prefix)})


def network_of(vector: Vector) -> rat.RAT:
    """The network of a file's weights, filled with them; sizes follow from the weights."""
    state, config = vector.state, vector.config
    levels = range(numbers(state, "encoders.", 1))
    width, channels = state["intro.weight"].shape[:2]
    depth = numbers(state, "middle_blks.0.layers.", 3)
    network = rat.RAT(
        channels,
        width=width,
        encoder_depths=[numbers(state, f"encoders.{level}.", 2) for level in levels],
        decoder_depths=[numbers(state, f"decoders.{level}.", 2) for level in levels],
        middle_depth=numbers(state, "middle_blks.", 1) * depth,
        group_depth=depth,
        num_heads=config.get("num_heads", 8),
        window=config.get("window_size", 4),
        scale=config.get("scale", 1),
    )
    rat.load_published(network, state)
    return network.to(vector.device).eval()


def latents_of(network: rat.RAT, image: Tensor, labels: Tensor) -> Tensors:
    """Restored image, and what goes into and comes out of the middle."""
    found: Tensors = {}
    first, last = network.middle_blks[0], network.middle_blks[-1]
    hooks = [
        first.register_forward_pre_hook(lambda _, args: found.update(latent_in=args[0])),
        last.register_forward_hook(lambda _, args, out: found.update(latent_out=out)),
        first.layers[0].ra.register_forward_hook(lambda _, args, out: found.update(first_region_attention=out)),
    ]
    found["y"] = network(image, labels)
    for hook in hooks:
        hook.remove()
    return found


@kind("rat", lambda vector: {"intro.weight", "ending.weight"} <= {k.removeprefix("module.") for k in vector.state})
def rat_model(vector: Vector) -> Tensors:
    bare = {key.removeprefix("module."): x for key, x in vector.state.items()}
    vector = Vector(vector.meta, bare, vector.inputs, vector.outputs)
    network, image, labels = network_of(vector), vector.inputs["inp"], vector.inputs["region_map"]
    if "padded_y" in vector.outputs:
        with torch.inference_mode():
            padded = [regions.pad_to_multiple(x, network.multiple) for x in (image, labels)]
            names = ("padded_inp", "padded_region_map", "padded_y", "y")
            return dict(zip(names, (*padded, network(*padded), rat.restore(network, image, labels)), strict=True))
    with torch.set_grad_enabled("label" in vector.inputs):
        found = latents_of(network, image, labels)
        if "label" in vector.inputs:
            beta = vector.config.get("loss_beta") or 1e-3
            found["loss"] = losses.focal_region_loss(found["y"], vector.inputs["label"], labels, beta=beta)
            found["loss"].backward()
            found |= {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return as_float64(found)


@kind("rat", lambda vector: any(key.endswith("masks") for key in vector.inputs))
def rat_region_pipeline(vector: Vector) -> Tensors:
    found = {}
    for key in [key for key in vector.inputs if key.endswith("masks")]:
        name = key.removesuffix("masks")
        whole = regions.region_map(vector.inputs[key])
        found[f"{name}indexed_map"] = whole
        for wanted in [key for key in vector.outputs if key.startswith(f"{name}down")]:
            found[wanted] = regions.downscale(whole, int(wanted.removeprefix(f"{name}down")))
    return found


@kind("rat", lambda vector: any(key.endswith(".pred") for key in vector.inputs))
def rat_losses(vector: Vector) -> Tensors:
    found = {}
    for name in sorted({key.split(".")[0] for key in vector.inputs}):
        unit, options = vector.unit(name), vector.config.get(name, {})
        p, t = unit.inputs["pred"].clone().requires_grad_(), unit.inputs["target"]
        focal = losses.focal_region_loss(p, t, unit.inputs["region_map"], beta=options.get("beta", 1.0))
        smooth = losses.charbonnier_loss(p, t, eps=options.get("charbonnier_eps", 1e-3))
        values = {"focal": focal, "charbonnier": smooth, "l1": (p - t).abs().mean()}
        values |= {f"{key}_grad": torch.autograd.grad(values[key], p)[0] for key in ("focal", "charbonnier")}
        if "focal_nan" in unit.outputs:  # published: not a number where prediction and target agree; ours must be 0
            values["focal_nan"] = torch.where(focal == 0, torch.nan, focal)
        found |= {f"{name}.{key}": x for key, x in values.items()}
    return found


@kind("rat", lambda vector: {"restored", "reference"} <= vector.inputs.keys())
def rat_metrics(vector: Vector) -> Tensors:
    images = [metrics.eight_bit(vector.inputs[name].movedim(1, 3).numpy()) for name in ("restored", "reference")]
    scores: dict[str, list[float]] = {"psnr_gray": [], "ssim_gray": [], "psnr_y": [], "ssim_y": []}
    scores["psnr_uint8_wraparound"] = []
    for pair in zip(*images, strict=True):
        for name, (a, b) in {"gray": pair, "y": [metrics.luma(x) for x in pair]}.items():
            scores[f"psnr_{name}"].append(metrics.psnr(a, b, 255))
            scores[f"ssim_{name}"].append(metrics.ssim(a, b, 255))
        wrapped = np.square(pair[0] - pair[1]).astype(np.float64)  # the published slip, in bytes; kept out of ours
        scores["psnr_uint8_wraparound"].append(float(20 * np.log10(255 / np.sqrt(wrapped.mean()))))
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}
    return found | {
        f"{name}_u8": torch.from_numpy(x) for name, x in zip(("restored", "reference"), images, strict=True)
    }
