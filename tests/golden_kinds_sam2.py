"""SAM 2's and SAM2-SGP's kinds of vectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from golden_vectors import Tensors, Vector, kind, recipe, weights, with_gradients
from medseg.networks import sam2, sam2_sgp, sam2_sgp_training
from medseg.networks.sam2_decoder import STABLE, Sam2MaskDecoder
from medseg.networks.sam2_hiera import HieraBlock, HieraConfig, ImageEncoder
from medseg.networks.sam2_memory import MemoryAttention, MemoryEncoder, RoPEAttention, sine_places
from medseg.networks.sam2_sgp_decoder import MaskWeightedAttention, SecondDecoder
from medseg.networks.sam2_sgp_lora import LoraProjection
from medseg.networks.sam_decoder import PromptEncoder


def count(state: Tensors, pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` among the key names."""
    return len({found[1] for key in state if (found := re.search(pattern, key))})


def sampled(found: Tensors, vector: Vector) -> Tensors:
    """Maps at every n-th row and column, where the file holds fewer than were computed."""
    cut = {}
    for key, x in found.items():
        want = vector.outputs.get(key, x)
        steps = [max(1, have // kept) for have, kept in zip(x.shape[-2:], want.shape[-2:], strict=True)]
        cut[key] = x[..., :: steps[0], :: steps[1]] if x.ndim > 3 else x
    return cut


def both_ways(vector: Vector, module: nn.Module, run: Callable[[Tensors], Tensors]) -> Tensors:
    """Outputs and gradients; of each output the worse of what runs with gradients and what runs without."""
    found = with_gradients(vector, module, run)
    with torch.no_grad():
        fast = run(vector.inputs)
    for key, want in vector.outputs.items():
        if key in fast and fast[key].shape == found[key].shape == want.shape:
            worse = ~((fast[key] - want).abs() <= (found[key] - want).abs())
            found[key] = torch.where(worse, fast[key], found[key])
    return found


def by_unit(vector: Vector, names: list[str], run: Callable[[Vector, str], Tensors]) -> Tensors:
    """Outputs of each unit of a file, under the unit's name."""
    return {f"{name}.{key}": x for name in names for key, x in run(vector.unit(name), name).items()}


def released(state: Tensors) -> Tensors:
    """The weights that are not dead in the released code, below `mask_decoder2.`."""
    return {key: x for key, x in state.items() if not key.startswith(sam2_sgp.DEAD)}


@kind("sam2-sgp", weights("self_attn", "cross_attn_image"))
def rope_attention(vector: Vector) -> Tensors:
    config, state = vector.config, vector.state

    def build(name: str) -> RoPEAttention:
        dim, kv_dim = state[f"{name}.q_proj.weight"].shape[0], state[f"{name}.k_proj.weight"].shape[1]
        theta = config.get("rope_theta", 10_000.0)
        return RoPEAttention(dim, config["num_heads"], kv_in_dim=kv_dim, rope_theta=theta)

    alone, bank = build("self_attn"), build("cross_attn_image")
    net = vector.load(nn.ModuleDict({"self_attn": alone, "cross_attn_image": bank}))

    def run(x: Tensors) -> Tensors:
        cos, sin = alone.rotations(x["x"].shape[1])
        memory = bank(x["x"], x["k"], x["v"], unrotated=config.get("num_k_exclude_rope", 0))
        return {"self": alone(x["x"], x["x"], x["x"]), "cross": memory, "rotary_cos": cos, "rotary_sin": sin}

    return both_ways(vector, net, run)


@kind("sam2-sgp", weights("layers", "norm"))
def memory_attention(vector: Vector) -> Tensors:
    state, config = vector.state, vector.config
    channels, narrow = state["layers.0.cross_attn_image.k_proj.weight"].shape
    inner = len(state["layers.0.linear1.bias"])
    net = MemoryAttention(channels, narrow, layers=count(state, r"layers\.(\d+)\."), inner=inner)
    vector.load(net)
    turned = config.get("layout", "token,batch,channel").startswith("token")

    def run(x: Tensors) -> Tensors:
        curr, places, memory, marks = (
            x[key].transpose(0, 1) if turned else x[key] for key in ("curr", "curr_pos", "memory", "memory_pos")
        )
        spare = config.get("num_obj_ptr_tokens", 0)
        memories = net.remember(memory, marks, curr.shape[1], unrotated=spare)
        first = net.layers[0](curr + 0.1 * places, memories.keys[0], memories.tokens)
        out = net(curr, places, memories)
        return {"layer0": first, "out": out.transpose(0, 1) if turned else out}

    return both_ways(vector, net, run)


@kind("sam2-sgp", weights("memory_encoder"))
def memory_encoder(vector: Vector) -> Tensors:
    narrow, channels = vector.state["memory_encoder.out_proj.weight"].shape[:2]
    encoder = MemoryEncoder(channels, narrow)
    vector.load(nn.ModuleDict({"memory_encoder": encoder}))

    def run(x: Tensors) -> Tensors:
        feature = x["pix_feat"].permute(1, 2, 0)
        side = isqrt(feature.shape[2])
        feature = feature.unflatten(2, (side, side))
        found = {"support_memory": encoder(feature, x["support_mask"])}
        found["frame_memory"] = encoder(feature, x["frame_logits"])
        return found | {"pos": sine_places((side, side), narrow).expand_as(found["frame_memory"])}

    return both_ways(vector, encoder, run)


@kind("sam2-sgp", lambda vector: isinstance(vector.meta["config"], list))
def hiera_blocks(vector: Vector) -> Tensors:
    units: dict[str, Any] = {unit["name"]: unit for unit in vector.meta["config"]}

    def run(unit: Vector, name: str) -> Tensors:
        config = units[name]
        options = {"window": config["window"], "pool": bool(config["q_stride"])}
        block = unit.load(HieraBlock(config["dim"], config["dim_out"], config["heads"], **options))
        return both_ways(unit, block, lambda x: {"y": block(x["x"])})

    return by_unit(vector, list(units), run)


@kind("sam2-sgp", lambda vector: any(".linear_a_q." in key for key in vector.state) and "units" in vector.config)
def lora(vector: Vector) -> Tensors:
    def run(unit: Vector, _: str) -> Tensors:
        rank, dim = unit.state["linear_a_q.weight"].shape
        module = LoraProjection(nn.Linear(dim, len(unit.state["qkv.bias"])), rank)
        unit.load(module).requires_grad_(True)
        return both_ways(unit, module, lambda x: {"y": module(x["x"])})

    return by_unit(vector, [unit["name"] for unit in vector.config["units"]], run)


def hiera_of(vector: Vector, prefix: str = "") -> HieraConfig:
    """Sizes of a trunk: of the model that the metadata name, or as they and the weights give them."""
    config, state = vector.config, vector.state
    if "model" in config:
        return sam2.PRESETS[config["model"].rsplit("hiera_", 1)[1]].hiera
    windows = HieraConfig.windows
    side = state[f"{prefix}trunk.pos_embed_window"].shape[2]
    dim, *grid = state[f"{prefix}trunk.pos_embed"].shape[1:]
    return HieraConfig(
        embed_dim=dim,
        num_heads=config.get("num_heads", 1),
        stages=tuple(config["stages"]),
        global_blocks=tuple(config["global"]),
        windows=tuple(config.get("windows", (side, *windows[1:]))),
        pos_grid=(grid[0], grid[1]),
    )


@kind("sam2-sgp", weights("trunk", "neck"))
def image_encoder(vector: Vector) -> Tensors:
    channels = vector.state["neck.convs.0.conv.weight"].shape[0]
    net = ImageEncoder(hiera_of(vector), channels)
    vector.load(net)
    image = vector.inputs.get("image")
    if image is None:  # drawn like the weights, but not scaled as one
        side = vector.config["image_size"]
        drawn = recipe({"input.image": [1, 3, side, side]}, vector.meta["seed"], 1.0)
        image = drawn["input.image"].to(vector.device)
    with torch.no_grad():
        stages = net.stages(image)
        levels = net.neck(stages)
    found = {"image_corner": image[..., :4, :4]}
    found |= {f"stage{number}": x.permute(0, 3, 1, 2) for number, x in enumerate(stages)}
    found |= {f"fpn{number}": x for number, x in enumerate(levels)}
    found |= {f"pos{n}": sine_places((x.shape[2], x.shape[3]), channels) for n, x in enumerate(levels)}
    return sampled(found, vector)


def decoder_sizes(state: Tensors, prefix: str) -> dict[str, int]:
    """Sizes of a decoder that follow from its weights."""
    return {
        "mlp_dim": next(len(x) for key, x in state.items() if key.startswith(prefix) and "mlp.layers.0.bias" in key),
        "iou_hidden": len(state[f"{prefix}iou_prediction_head.layers.0.bias"]),
    }


@kind("sam2-sgp", weights("sam_mask_decoder", "sam_prompt_encoder"))
def pseudo_mask_decoder(vector: Vector) -> Tensors:
    state, config = vector.state, vector.config
    channels = state["sam_mask_decoder.mask_tokens.weight"].shape[1]
    sizes = decoder_sizes(state, "sam_mask_decoder.")
    decoder = Sam2MaskDecoder(channels, num_heads=config.get("num_heads", 8), **sizes)
    prompts = PromptEncoder(channels, config["image_size"] // config["grid"][0])
    net = vector.load(nn.ModuleDict({"sam_mask_decoder": decoder, "sam_prompt_encoder": prompts}))
    stable = tuple(config.get("dynamic_multimask", STABLE))

    def run(x: Tensors) -> Tensors:
        embedding = x["image_embeddings"]
        grid = (embedding.shape[2], embedding.shape[3])
        places = prompts.dense_pe(grid)
        sparse, dense = prompts(grid)
        found = decoder.drawing(embedding, places, sparse, dense, (x["high_res_0"], x["high_res_1"]))
        mask, iou = found.single(training=False, stable=(stable[0], stable[1]))
        outputs = {"all_masks": found.masks, "all_iou": found.iou, "mask": mask, "iou": iou, "image_pe": places}
        outputs |= {"object_logit": found.presence, "token": found.tokens[:, :1], "upscaled": found.feature}
        return outputs | {"tokens_x_image": found.relation()}

    return both_ways(vector, net, run)


@kind("sam2-sgp", weights("mask_decoder2", "sam_prompt_encoder"))
def second_decoder(vector: Vector) -> Tensors:
    state, config = released(vector.state), vector.config
    channels = state["mask_decoder2.mask_tokens.weight"].shape[1]
    sizes = decoder_sizes(state, "mask_decoder2.")
    decoder = SecondDecoder(channels, guidance="released", num_heads=config.get("num_heads", 8), **sizes)
    prompts = PromptEncoder(channels, config["image_size"] // config["grid"][0])
    net = nn.ModuleDict({"mask_decoder2": decoder, "sam_prompt_encoder": prompts})
    net.load_state_dict(state)
    net.to(vector.device).eval()

    def run(x: Tensors) -> Tensors:
        embedding = x["image_embeddings"]
        grid = (embedding.shape[2], embedding.shape[3])
        sparse, dense = prompts(grid, boxes=x["box"])
        pseudo = x["upscaled"][:, :1]  # has no influence as released
        final = decoder(embedding, prompts.dense_pe(grid), (sparse, dense), pseudo, x["upscaled"], masks=4)
        return {"masks": final.logits, "iou": final.iou, "sparse": sparse}

    return both_ways(vector, net, run)


@kind("sam2-sgp", weights("q_proj", "k_proj", "v_proj", "out_proj", "norm1", "norm2", "norm3"))
def pma_attention(vector: Vector) -> Tensors:
    net = MaskWeightedAttention(vector.state["q_proj.weight"].shape[1], vector.config["num_heads"])
    net.load_state_dict({key: x for key, x in vector.state.items() if not key.startswith("norm")})
    net.to(vector.device).eval()

    def run(x: Tensors) -> Tensors:
        tokens, image, mask = x["tokens"], x["image"], x["mask_feat"]
        weighted = image.shape[1] in (196, 1024)  # the released code asks for these numbers
        toward = net(tokens, image, image, mask=mask if weighted else None)
        return {"token_to_image": toward, "image_to_token": net(image, tokens, tokens, mask=mask.mT)}

    return both_ways(vector, net, run)


@kind("sam2-sgp", lambda vector: {"logits", "mask", "box_masks"} <= vector.inputs.keys())
def losses_metrics_boxes(vector: Vector) -> Tensors:
    config, x = vector.config, vector.inputs
    logits, mask = x["logits"].clone().requires_grad_(), x["mask"]
    options = {name: config[name] for name in ("start", "decay", "pos_weight") if name in config}
    found: Tensors = {}
    for epoch in config["epochs"]:
        loss = sam2_sgp_training.released_loss(logits, mask, epoch, **options)
        found[f"loss_epoch{epoch}"] = loss[None]
    found["loss_epoch0"].backward()
    at, truths = config["binarise_logits_at"], config["thresholds"]
    scores = [sam2_sgp_training.overlap(logits, mask > truth, threshold=at) for truth in truths]
    for name, each in zip(("iou", "dice"), zip(*scores, strict=True), strict=True):
        found[name] = torch.stack(each).mean()[None]
    boxes = sam2_sgp.mask_boxes(x["box_masks"], at, sam2_sgp.EMPTY_BOX)
    return found | {"boxes": boxes} | ({} if logits.grad is None else {"grad_logits": logits.grad})


def network_of(vector: Vector, state: Tensors) -> sam2_sgp.Sam2Sgp:
    """The whole network in the sizes of a file, as released."""
    config = vector.config
    narrow, channels = state["memory_encoder.out_proj.weight"].shape[:2]
    sizes = decoder_sizes(state, "sam_mask_decoder.")
    net = sam2_sgp.Sam2Sgp(
        guidance="released",
        lora_rank=config["lora_rank"],
        normalise="none",
        bank_size=config.get("memory_bank_size", 16),
        box_threshold=config.get("pseudo_threshold_on_logits", 0.5),
        hiera=hiera_of(Vector(vector.meta, state, {}, {}), "image_encoder."),
        channels=channels,
        memory_channels=narrow,
        memory_layers=count(state, r"memory_attention\.layers\.(\d+)\."),
        memory_inner=len(state["memory_attention.layers.0.linear1.bias"]),
        decoder_heads=config.get("num_heads", 8),
        decoder_mlp_dim=sizes["mlp_dim"],
        iou_hidden=sizes["iou_hidden"],
        image_size=config["image_size"],
    )
    sam2_sgp.load_published(net, vector.state)
    return net.to(vector.device).eval()


@kind("sam2-sgp", weights("sam"))
def sgp_model(vector: Vector) -> Tensors:
    net, x = network_of(vector, sam2.unwrapped(vector.state)), vector.inputs
    with torch.no_grad():
        support = net.support(x["support_images"], x["support_masks"])
        found = flat(net, x["2d.image"], support, x["2d.support_indices"]) if "2d.image" in x else {}
        if "3d.volume" in x:
            found |= volumes(net, x["3d.volume"], support, x["3d.support_indices"])
    return sampled(found, vector)


def flat(net: sam2_sgp.Sam2Sgp, images: Tensor, support: sam2_sgp.Support, chosen: Tensor) -> Tensors:
    """Every step of the 2D procedure."""
    features = net.features(images)
    result = net(images, support, chosen=chosen)
    grid = (features.deep.shape[2], features.deep.shape[3])
    sparse, dense = net.sam_prompt_encoder(grid, boxes=result.box)
    places, first = net.sam_prompt_encoder.dense_pe(grid), result.first
    final = net.mask_decoder2(result.embedding, places, (sparse, dense), result.pseudo, first.feature, masks=4)
    steps = {
        "similarity": net.similarity(features.deep, support),
        "query_feat": features.deep.flatten(2).permute(2, 0, 1),
        "support_memory": support.memory,
        "support_memory_pos": sine_places(grid, support.memory.shape[1]).expand_as(support.memory),
        "conditioned_embedding": result.embedding,
        "pseudo_logits": result.pseudo,
        "pseudo_iou": first.single(training=False)[1],
        "object_score_logits": first.presence,
        "upscaled_embedding": first.feature,
        "mask_tokens_x_src": first.relation(),
        "box": result.box,
        "sparse_box": sparse,
        "pma_masks": final.logits,
        "pma_iou": result.final.iou,
        "logits": result.logits,
    }
    return {f"2d.{name}": x for name, x in steps.items()}


def volumes(net: sam2_sgp.Sam2Sgp, volumes: Tensor, support: sam2_sgp.Support, chosen: Tensor) -> Tensors:
    """The 3D procedure, volume by volume; `chosen` is (slice, volume, K)."""
    parts: dict[str, list[Tensor]] = {name: [] for name in ("logits", "pseudo_logits", "boxes", "similarity")}
    last = []
    for number, volume in enumerate(volumes):
        slices = list(net.slices(volume, support, chosen=chosen[:, number]))
        parts["logits"].append(torch.stack([each.logits[0] for each in slices]))
        parts["pseudo_logits"].append(torch.stack([each.pseudo[0] for each in slices]))
        parts["boxes"].append(torch.cat([each.box for each in slices]))
        parts["similarity"].append(net.similarity(net.features(volume).deep, support))
        last.append(net.memory(slices[-1].embedding, slices[-1].logits)[0])
    length = torch.tensor([min(net.bank_size, volumes.shape[1])], device=volumes.device)
    found = {f"3d.{name}": torch.stack(each) for name, each in parts.items()}
    return found | {"3d.last_memory": torch.stack(last), "3d.bank_length": length}


@kind("sam2-sgp", lambda vector: "keys" in vector.meta and not vector.outputs)
def official_keys(vector: Vector) -> Tensors:
    for name, shapes in vector.meta["keys"].items():
        with torch.device("meta"):
            state = {key: torch.empty(shape) for key, shape in shapes.items()}
            adapted = re.fullmatch(r"sam2_sgp_hiera_(\w+)_lora(\d+)", name)
            plain = re.fullmatch(r"sam2(\.1)?_hiera_(\w+)", name)
            if adapted:
                net = sam2_sgp.Sam2Sgp(adapted[1], guidance="released", lora_rank=int(adapted[2]))
                kept = sam2_sgp.load_published(net, state)
            elif plain:
                net, kept = sam2.Sam2(plain[2], version="2.1" if plain[1] else "2.0"), []
                sam2.load_published(net, state)
            else:
                raise ValueError(f"no preset is called {name}")
        published = {key.removeprefix("sam.") for key in state}
        own = set(net.state_dict())
        if kept or own - published or not all(key.startswith(sam2_sgp.DEAD) for key in published - own):
            raise ValueError(f"{name}: {sorted(own ^ published)[:5]}, kept {kept[:5]}")
    return {}
