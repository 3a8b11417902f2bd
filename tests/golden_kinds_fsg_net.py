"""FSG-Net's kinds of vectors."""

from __future__ import annotations

import re
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from golden_vectors import Tensors, Vector, as_float64, kind, weights, with_gradients
from medseg import losses
from medseg.networks import fsg_net, fsg_net_training
from medseg_kernels import box_sum


@kind("fsg-net", lambda vector: not vector.state and all(re.fullmatch(r"r\d+", key) for key in vector.inputs)
      and bool(vector.inputs))  # fmt: skip
def fsg_net_box_sum(vector: Vector) -> Tensors:
    found = {}
    for key, x in vector.inputs.items():
        found[key] = box_sum(x, int(key[1:]))
        found[f"{key}_count"] = box_sum(torch.ones_like(x[:1, :1]), int(key[1:]))
    return found


@kind("fsg-net", lambda vector: not vector.state and {"lr_x", "lr_y", "hr_x", "l_a"} <= vector.inputs.keys())
def fsg_net_guided_filter(vector: Vector) -> Tensors:
    options = {"radius": vector.config.get("radius", 2), "eps": vector.config.get("eps", 1e-2)}
    alone = fsg_net.GuidedFilter(**options)
    coupled = fsg_net.GuidedFilter(**options, batch_coupled=True)

    def run(x: Tensors) -> Tensors:
        maps = [x[name] for name in ("lr_x", "lr_y", "hr_x", "l_a")]
        return {"y": coupled(*maps), "y_each_sample_alone": alone(*maps)}

    return as_float64(with_gradients(vector, None, run))


def block(vector: Vector, module: nn.Module) -> Tensors:
    """Outputs and gradients of a module that takes `x`, or `x` and `g`."""
    vector.load(module)
    names = [name for name in ("x", "g") if name in vector.inputs]
    return as_float64(with_gradients(vector, module, lambda x: {"y": module(*[x[name] for name in names])}))


@kind("fsg-net", lambda vector: vector.state.keys() == {"conv.weight", "conv.bias"})
def fsg_net_spatial_gate(vector: Vector) -> Tensors:
    return block(vector, fsg_net.SpatialGate())


@kind("fsg-net", weights("theta", "phi", "psi"))
def fsg_net_cross_gate(vector: Vector) -> Tensors:
    return block(vector, fsg_net.CrossGate(vector.state["theta.0.weight"].shape[0]))


@kind("fsg-net", weights("dwconv", "norm", "conv1", "conv2", "gamma"))
def fsg_net_conv_next(vector: Vector) -> Tensors:
    channels, _, kernel, _ = vector.state["dwconv.weight"].shape
    return block(vector, fsg_net.ConvNext(channels, kernel))


@kind("fsg-net", weights("conv_block", "conv_skip"))
def fsg_net_residual(vector: Vector) -> Tensors:
    out, inner = vector.state["conv_skip.0.weight"].shape[:2]
    return block(vector, fsg_net.ResidualConv(inner, out))


@kind("fsg-net", lambda vector: {"x", "bernoulli"} <= vector.inputs.keys())
def fsg_net_drop_block(vector: Vector) -> Tensors:
    config, x, seeds = vector.config, vector.inputs["x"], vector.inputs["bernoulli"]
    drop = fsg_net.DropBlock(config["block_size"], config["p"])
    kept = drop(torch.ones_like(x), seeds) != 0
    found = {
        "y": drop(x, seeds),
        "gamma": torch.tensor(drop.density(x.shape[3])),
        "kept_fraction": kept.double().mean(),
    }
    return found | {"y_eval": drop.eval()(x)}


def network_of(vector: Vector, *, batch_coupled: bool) -> fsg_net.FSGNet:
    """The network of a file's weights, filled with them; sizes follow from the weights."""
    state = vector.state
    c, channels, kernel, _ = state["input_layer.0.conv.0.weight"].shape
    stages = ("input_layer", "down_conv_2", "down_conv_3", "down_conv_4")
    network = fsg_net.FSGNet(
        channels,
        state["output_layer1.0.weight"].shape[0],
        depths=[sum(re.fullmatch(rf"{stage}\.\d+\.gamma", key) is not None for key in state) for stage in stages],
        base_channels=c,
        kernel_size=kernel,
        guided="attn.conv.weight" in state,
        batch_coupled=batch_coupled,
    )
    fsg_net.load_published(network, state)
    return network.to(vector.device).eval()


def outputs_of(network: fsg_net.FSGNet, x: Tensor, suffix: str = "") -> Tensors:
    maps = network.supervised(x)
    return {f"out_{number}{suffix}": logits.sigmoid() for number, logits in enumerate(maps, start=1)}


@kind("fsg-net", lambda vector: any(key.endswith("input_layer.0.conv.0.weight") for key in vector.state))
def fsg_net_model(vector: Vector) -> Tensors:
    bare = {key.split("neunet.")[-1].split("FSGNet.")[-1].removeprefix("module."): x for key, x in vector.state.items()}
    vector = Vector(vector.meta, bare, vector.inputs, vector.outputs)
    network, x = network_of(vector, batch_coupled=True), vector.inputs["x"]
    trained = any(key.startswith(("running.", "grad.")) for key in vector.outputs)
    if trained:
        network.train()
        for drop in (module for module in network.modules() if isinstance(module, fsg_net.DropBlock)):
            drop.eval()
    with torch.set_grad_enabled(trained):
        maps = network.supervised(x)
    found = {f"out_{number}": logits.sigmoid() for number, logits in enumerate(maps, start=1)}
    if "label" in vector.inputs:
        target = vector.inputs["label"]
        for number, logits in enumerate(maps, start=1):
            found[f"loss_{number}"] = losses.dice_and_binary_entropy(logits, target, from_logits=True)
        found["loss"] = fsg_net_training.supervision_loss(maps, target)
    if trained:
        found["loss"].backward()
        found |= {f"running.{name}": buffer for name, buffer in network.named_buffers()}
        found |= {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    if any(key.endswith("_each_sample_alone") for key in vector.outputs):
        with torch.no_grad():
            found |= outputs_of(network_of(vector, batch_coupled=False), x, "_each_sample_alone")
    return as_float64(found)


@kind("fsg-net", lambda vector: any(key.endswith(".pred") for key in vector.inputs))
def fsg_net_losses(vector: Vector) -> Tensors:
    focal, found = vector.config.get("focal_bce", {}), {}
    alpha, beta = vector.config.get("tversky_alpha", 0.5), vector.config.get("tversky_beta", 0.5)
    smooth = vector.config.get("smooth", 1)
    for name in sorted({key.split(".")[0] for key in vector.inputs}):
        p, t = vector.inputs[f"{name}.pred"].clone().requires_grad_(), vector.inputs[f"{name}.target"]
        both = losses.dice_and_binary_entropy(p, t)
        both.backward()
        dice = 1 - losses.tversky_index(p, t, smooth=smooth / 2)
        tversky = 1 - losses.tversky_index(p, t, false_positive=alpha, false_negative=beta, smooth=smooth)
        unit = {
            "dice": dice,
            "bce": both - dice,
            "dice_bce": both,
            "dice_bce_grad": p.grad,
            "jaccard": 1 - losses.tversky_index(p, t, false_positive=1, false_negative=1, smooth=smooth),
            "tversky": tversky,
            "focal_tversky": tversky,  # published with an exponent of 1
            "focal_bce": losses.focal_entropy(p, t, **focal),
        }
        found |= {f"{name}.{key}": x for key, x in unit.items() if x is not None}
    return found


@kind("fsg-net", lambda vector: {"prob", "target"} <= vector.inputs.keys())
def fsg_net_metrics(vector: Vector) -> Tensors:
    threshold = vector.config.get("threshold", 0.5)
    p, t = vector.inputs["prob"].double().numpy(), vector.inputs["target"].numpy()
    short = {"acc": "accuracy", "sen": "sensitivity", "f1": "f1", "iou": "iou", "mcc": "mcc", "auc_true": "auc"}
    scores = [fsg_net_training.vessel_scores(a, b, threshold=threshold) for a, b in zip(p, t, strict=True)]
    found = {f"per_image.{key}": np.array([score[name] for score in scores]) for key, name in short.items()}
    for key in [key for key in vector.outputs if re.match(r"mean\d+\.", key)]:
        count, name = int(key.split(".")[0][4:]), key.split(".")[1]
        found[key] = found[f"per_image.{name}"][:count].mean()
    counts = [[((p > threshold) == a)[t == b].sum() for a in (0, 1)] for b in (0, 1)]
    confusion = np.array(counts, dtype=np.float64)
    overlap = np.diag(confusion)
    found["stream.confusion"], found["stream.acc"] = confusion, overlap.sum() / confusion.sum()
    found["stream.class_iou"] = overlap / (confusion.sum(0) + confusion.sum(1) - overlap)
    found["stream.miou"] = found["stream.class_iou"].mean()
    found["per_image.auc_upstream_sorted"] = np.array(
        [area_of_counts((a > threshold).sum(), b.sum(), b.size) for a, b in zip(p, t, strict=True)]
    )
    return {key: torch.as_tensor(x) for key, x in found.items()}


def area_of_counts(predicted: int, true: int, pixels: int) -> float:
    """What the published code prints as AUC, which only knows how many pixels were found; kept out of our metrics."""
    if predicted >= true:
        return 1 - (predicted - true) / (2 * (pixels - true))
    return (1 + predicted / true) / 2


@kind("fsg-net", lambda vector: "targets" in vector.config)
def fsg_net_padding(vector: Vector) -> Tensors:
    sizes = vector.config["targets"]
    return {key: fsg_net_training.pad_to_centre(x, tuple(sizes[key])) for key, x in vector.inputs.items()}


@kind("fsg-net", lambda vector: any("warmup_epochs" in str(part) for part in vector.config.values()))
def fsg_net_learning_rate(vector: Vector) -> Tensors:
    found = {}
    for name, c in vector.config.items():
        per_epoch = ceil(c["train_images"] / c["batch"])
        steps, warmup = c["epochs"] * per_epoch, c["warmup_epochs"] * per_epoch
        cycles = c["epochs"] / c["cycle_epochs"]
        wave = fsg_net_training.learning_rate_wave
        found[name] = torch.tensor(
            [wave(step, steps, warmup=warmup, cycles=cycles) for step in range(steps)], dtype=torch.float64
        )
    return found
