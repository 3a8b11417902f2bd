"""HER-Seg's kinds of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden_vectors import Tensors, Vector, kind, weights, with_gradients
from medseg import losses
from medseg.networks import her_seg
from medseg.networks.her_seg_decoder import MaskDecoder


def depths_of(state: Tensors, stages: str) -> list[int]:
    """Number of blocks of each stage, from the names of their weights."""
    names = [key.removeprefix(stages).split(".") for key in state if key.startswith(stages)]
    stage_count = 1 + max(int(name[0]) for name in names)
    return [1 + max(int(name[2]) for name in names if int(name[0]) == stage) for stage in range(stage_count)]


def fill(vector: Vector, module: nn.Module) -> nn.Module:
    """Load all weights but the position tables, which the networks make for themselves."""
    state = {key: x for key, x in vector.state.items() if not key.endswith("rope.rotations")}
    module.load_state_dict(state)
    return module.to(vector.device).eval()


def place(vector: Vector, dim: int) -> tuple[tuple[int, int], Tensor]:
    """Grid of a vector that names it, and the turns of its places."""
    grid = (vector.config["resolution"][0], vector.config["resolution"][1])
    return grid, her_seg.rotations(grid, dim, vector.device)


@kind("her-seg", lambda vector: {"qk.weight", "lepe.weight", "up_proj.weight"} <= vector.state.keys())
def her_seg_attention(vector: Vector) -> Tensors:
    dim, heads = vector.state["down_proj.weight"].shape[0], vector.config["num_heads"]
    module = her_seg.DualGatedLinearAttention(dim, heads, bias="qk.bias" in vector.state)
    grid, turns = place(vector, dim)
    fill(vector, module)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    def turn(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.view_as_complex(turns)).flatten(2)

    def run(x: Tensors) -> Tensors:
        q, k = (F.elu(each) + 1 for each in module.qk(x["x"]).chunk(2, dim=2))
        v = module.values(x["x"])
        state = split(turn(k)).mT @ split(v) / v.shape[1]
        normaliser = split(q) @ split(k).mean(2)[..., None] + 1e-6
        inner = {"phi_q": q, "phi_k": k, "v": v, "q_rope": split(turn(q)), "kv": state, "z": 1 / normaliser}
        return inner | {"y": module(x["x"], grid, turns)}

    return with_gradients(vector, module, run)


@kind("her-seg", weights("norm1", "act_proj", "attn", "out_proj", "norm2", "mlp"))
def her_seg_block(vector: Vector) -> Tensors:
    dim, inner = vector.state["mlp.fc2.weight"].shape
    module = fill(vector, her_seg.Block(dim, vector.config["num_heads"], mlp_ratio=inner / dim))
    grid, turns = place(vector, dim)
    return with_gradients(vector, module, lambda x: {"y": module(x["x"], grid, turns)})


@kind("her-seg", weights("blocks"))
def her_seg_conv_blocks(vector: Vector) -> Tensors:
    depth = 1 + max(int(key.split(".")[1]) for key in vector.state)
    dim, inner = vector.state["blocks.0.conv3.c.weight"].shape[:2]
    stage = her_seg.Stage([her_seg.InvertedResidual(dim, inner / dim) for _ in range(depth)])
    fill(vector, stage)

    def run(x: Tensors) -> Tensors:
        y = stage(x["x"])
        if "y_train" not in vector.outputs:
            return {"y": y}
        stage.train()
        return {"y": y, "y_train": stage(x["x"])}

    return with_gradients(vector, stage, run)


def encoder_options(vector: Vector, prefix: str) -> dict[str, object]:
    """What the encoder's constructor needs beside its width."""
    return {"depths": depths_of(vector.state, f"{prefix}layers."), "num_heads": vector.config["num_heads"]}


@kind("her-seg", weights("patch_embed", "layers"))
def her_seg_encoder(vector: Vector) -> Tensors:
    dim, channels = vector.state["patch_embed.proj.weight"].shape[:2]
    options = encoder_options(vector, "") | {"mlp_ratio": vector.config.get("mlp_ratio", 2.0)}
    module = fill(vector, her_seg.Encoder(channels, dim, **options))
    return with_gradients(vector, module, lambda x: {"y": module(x["x"]).flatten(2).mT})


@kind("her-seg", lambda vector: {"iou_token.weight", "mask_tokens.weight"} <= vector.state.keys())
def her_seg_decoder(vector: Vector) -> Tensors:
    state = vector.state
    masks, channels = state["mask_tokens.weight"].shape
    inner = state["transformer.layers.0.mlp.lin1.weight"].shape[0]
    depth = len({key.split(".")[2] for key in state if key.startswith("transformer.layers.")})
    module = MaskDecoder(channels, vector.config["num_heads"], inner, num_masks=masks, depth=depth)
    fill(vector, module)

    def run(x: Tensors) -> Tensors:
        prompts = x.get("sparse_prompt_embeddings")
        image = x["image_embeddings"] + x["dense_prompt_embeddings"]
        tokens, cells = module.attend(image, x["image_pe"], prompts)
        masks = {
            "single": module(image, x["image_pe"], prompts, masks=1),
            "multi": module(image, x["image_pe"], prompts),
        }
        return {"tokens": tokens, "keys": cells} | {f"masks_{name}": mask for name, mask in masks.items()}

    return with_gradients(vector, module, run)


@kind("her-seg", weights("image_encoder", "neck", "prompt_encoder", "mask_decoder"))
def her_seg_model(vector: Vector) -> Tensors:
    state, config = vector.state, vector.config
    dim, channels = state["image_encoder.patch_embed.proj.weight"].shape[:2]
    size = her_seg.DecoderSize(
        dim=state["neck.2.weight"].shape[0],
        heads=config.get("decoder_heads", 8),
        mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )
    module = her_seg.HERSeg(channels, dim=dim, decoder=size, **encoder_options(vector, "image_encoder."))
    her_seg.load_published(module, state)
    module.to(vector.device).eval()
    image, target = vector.inputs["x"], vector.inputs.get("target")
    with torch.set_grad_enabled(target is not None):
        logits = module(image)
        tokens = module.image_encoder(image)
        found = {"logits": logits, "tokens": tokens.flatten(2).mT, "neck": module.neck(tokens)}
        if target is None:
            return found
        return found | loss_of(vector, logits.sigmoid(), target) | parameter_gradients(vector, module, logits, target)


def parameter_gradients(vector: Vector, module: nn.Module, logits: Tensor, target: Tensor) -> Tensors:
    """Gradients of the loss that the file holds; parameters said to have none must have none."""
    losses.dice_and_focal(logits, target).backward()
    named = dict(module.named_parameters())
    taught = [name for name in vector.meta.get("parameters_without_gradient", ()) if named[name].grad is not None]
    if taught:
        raise ValueError(f"parameters without gradient have one: {taught}")
    gradients = {f"grad.{name}": x.grad for name, x in named.items()}
    return {name: x for name, x in gradients.items() if x is not None and name in vector.outputs}


def loss_of(vector: Vector, probability: Tensor, target: Tensor) -> Tensors:
    names = {"weight": "dice_weight", "focal_alpha": "alpha", "focal_gamma": "gamma"}
    options = {names[key]: value for key, value in vector.config.items() if key in names}
    loss = losses.dice_and_focal(probability, target, from_logits=False, **options)
    iou = losses.tversky_index(probability, target, false_positive=1, false_negative=1, smooth=1)
    return {"loss": loss[None], "iou": iou[None], "iou_metric": iou[None]}


@kind("her-seg", lambda vector: not vector.state and {"prob", "target"} <= vector.inputs.keys())
def her_seg_loss(vector: Vector) -> Tensors:
    probability = vector.inputs["prob"].clone().requires_grad_()
    found = loss_of(vector, probability, vector.inputs["target"])
    found["loss"].backward()
    return found | ({} if probability.grad is None else {"grad_prob": probability.grad})
