"""Vectors of DISGAN: generator, discriminator, feature extractor, their parts, losses and the published assembly."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden_vectors import Tensors, Vector, kind, weights, with_gradients
from medseg.networks import disgan, disgan_training


def count(state: Tensors, pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` among the key names."""
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def once(vector: Vector) -> Vector:
    """Where weights are drawn, a tensor's second registration is drawn by another name: keep the first alone."""
    if vector.meta.get("state_stored", True):
        return vector
    return replace(vector, state={key: x for key, x in vector.state.items() if ".blocks." not in key})


def build_generator(state: Tensors) -> nn.Module:
    filters, channels = state["conv1.module.weight"].shape[:2]
    blocks, doublings = count(state, r"res_blocks1\.(\d+)\."), count(state, r"upsampling\.(\d+)\.weight")
    return disgan.Generator(channels, filters, num_res_blocks=blocks, num_upsample=doublings)


def build_discriminator(state: Tensors) -> nn.Module:
    filters, channels = state["initial_conv.module.weight"].shape[:2]
    wavelets = [len(state[f"DWT_down_{k}.conv1x1_low.bias"]) for k in range(count(state, r"DWT_down_(\d+)\."))]
    return disgan.Discriminator(channels, filters, wavelet_channels=wavelets)


def build_extractor(state: Tensors) -> nn.Module:
    filters, channels = state["conv1.weight"].shape[:2]
    return disgan_training.FeatureExtractor(channels, filters)


BUILDERS = {
    "res_blocks1.0.dense_blocks.0.b1.0.weight": build_generator,
    "initial_conv.module.weight": build_discriminator,
    "layer4.0.conv2.weight": build_extractor,
}


@kind("disgan", lambda vector: "keys" in vector.meta)
def disgan_official_keys(vector: Vector) -> Tensors:
    for name, shapes in vector.meta["keys"].items():
        with torch.device("meta"):
            state = {key: torch.empty(shape) for key, shape in shapes.items()}
            build = next((build for key, build in BUILDERS.items() if key in state), None)
            if build is None:
                raise ValueError(f"no network has the keys of {name}")
            network = build(state)
        kept = {key: x for key, x in state.items() if ".blocks." not in key}  # tensors without values have no twins
        network.load_state_dict(kept)
    return {}


@kind("disgan", lambda vector: any(key in vector.state for key in BUILDERS))
def disgan_network(vector: Vector) -> Tensors:
    build = next(build for key, build in BUILDERS.items() if key in vector.state)
    network = once(vector).load(build(vector.state))
    (output,) = (key for key in vector.outputs if not key.startswith("grad"))
    (volume,) = (key for key in vector.inputs if not key.startswith("grad"))
    found = with_gradients(vector, network, lambda x: {output: network(x[volume])})
    with torch.no_grad():  # the path that keeps nothing for gradients must give the same
        fast = network(vector.inputs[volume])
    if not torch.allclose(fast, found[output], rtol=1e-4, atol=1e-4 * float(fast.abs().max())):
        raise ValueError(f"{output} differs when nothing is recorded for gradients")
    return found


@kind("disgan", weights("rdb", "rrdb"))
def disgan_generator_blocks(vector: Vector) -> Tensors:
    filters, scale = len(vector.state["rdb.b1.0.bias"]), vector.config.get("shuffle_scale", 2)
    blocks = nn.ModuleDict({"rdb": disgan.DenseBlock(filters), "rrdb": disgan.ResidualDenseBlock(filters)})
    once(vector).load(blocks)

    def run(x: Tensors) -> Tensors:
        inner = {name: block(x["x"]) for name, block in blocks.items()}
        return inner | {"shuffled": disgan.shuffle(x["to_shuffle"], scale)}

    return with_gradients(vector, blocks, run)


def listed(vector: Vector, key: str) -> bool:
    return isinstance(vector.config, list) and all(key in part for part in vector.config)


@kind("disgan", lambda vector: listed(vector, "mode"))
def disgan_discriminator_blocks(vector: Vector) -> Tensors:
    found = {}
    for part in vector.config:
        name, mode, sizes = part["name"], part["mode"], (part["in_c"], part["out_c"])
        unit = once(vector).unit(name)
        if mode == "downsample":
            block = disgan.down_block(name, *sizes, norm=part["bn"])
        else:
            block = disgan.up_block(name, *sizes, linear=mode == "linear")
        unit.load(block)

        def run(x: Tensors, block: nn.Module = block, relu: bool = part["relu"]) -> Tensors:
            seen = F.relu(x["x"]) if relu else F.leaky_relu(x["x"], disgan.ENCODER_SLOPE)
            return {"out": block(seen), "input_after": seen, "train": copy.deepcopy(block).train()(seen)}

        found |= {f"{name}.{key}": x for key, x in with_gradients(unit, block, run).items()}
    return found


@kind("disgan", lambda vector: not vector.state and {"pred_fake", "pred_real", "sr", "hr"} <= vector.inputs.keys())
def disgan_losses(vector: Vector) -> Tensors:
    def total(x: Tensors) -> Tensor:
        features = (x["feat_sr"], x["feat_hr"])
        predictions = (x["pred_fake"], x["pred_real"])
        return disgan_training.generator_loss(x["sr"], x["hr"], *predictions, features, **vector.config)

    def judged(x: Tensors) -> Tensor:
        return disgan_training.discriminator_loss(x["pred_real"], x["pred_fake"])

    fake, real = vector.inputs["pred_fake"], vector.inputs["pred_real"]
    found = {"g_adv": disgan_training.adversarial_loss(fake, real)[None]}
    for step, loss in (("g", total), ("d", judged)):
        leaves = {key: x.clone().requires_grad_() for key, x in vector.inputs.items()}
        value = loss(leaves)
        value.backward(vector.inputs[f"grad_{step}_loss"].reshape(()))
        found[f"{step}_loss"] = value.detach()[None]
        found |= {f"grad_{step}.{key}": x.grad for key, x in leaves.items() if x.grad is not None}
    return found


@kind("disgan", lambda vector: listed(vector, "step") and listed(vector, "cropped"))
def disgan_assembly(vector: Vector) -> Tensors:
    found, patches = {}, []

    def twice(x: Tensor) -> Tensor:
        patches.append(x[0, 0])
        return F.interpolate(x, scale_factor=2.0)

    for number, part in enumerate(vector.config):
        side = 2 * vector.outputs["first_patch_lr"].shape[0]
        whole = disgan_training.patches_overwritten(vector.inputs[f"v{number}"], twice, side=side, step=part["step"])
        stored = vector.outputs[f"assembled{number}"].shape
        every = next(
            n for n in range(1, side) if all(-(-a // n) == b for a, b in zip(whole.shape, stored, strict=True))
        )
        found[f"assembled{number}"] = whole[::every, ::every, ::every]
    return found | {"first_patch_lr": patches[0]}
