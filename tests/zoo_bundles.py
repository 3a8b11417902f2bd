"""Bundles shaped like those of the public model zoo: stock MONAI networks, random weights, a few kilobytes."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

WINDOW = (32, 32, 32)
NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8, 16],
        "strides": [2, 2],
        "num_res_units": 1,
        "norm": "batch",
    },
    "SegResNet": {
        "spatial_dims": 3,
        "init_filters": 8,
        "in_channels": 1,
        "out_channels": 4,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "norm": ["GROUP", {"num_groups": 4}],
    },
    "DynUNet": {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
    },
}
_GREY: dict[str, list[dict[str, Any]]] = {
    "UNet": [
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1}
        | {"clip": True}
    ],
    "SegResNet": [
        {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True, "channel_wise": True},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
    ],
    "DynUNet": [{"_target_": "NormalizeIntensityd", "keys": ["image"], "subtrahend": 40.0, "divisor": 120.0}],
}


def config(network: str) -> dict[str, Any]:
    """An inference configuration as the zoo writes them: macros of place, handlers, expressions and all."""
    before = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim", "mode": "bilinear"},
        *deepcopy(_GREY[network]),
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "image_key": "image",
        "pixdim": [1.0, 1.0, 1.0],
        "network_def": {"_target_": network, **deepcopy(NETWORKS[network])},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(WINDOW),
            "sw_batch_size": 4,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
            ],
        },
        "initialize": ["$setattr(torch.backends.cudnn, 'benchmark', True)"],
        "run": ["$@evaluator.run()"],
    }


def metadata(network: str) -> dict[str, Any]:
    """What such a bundle says of itself."""
    channels = NETWORKS[network]["out_channels"]
    patch = {"spatial_shape": list(WINDOW), "dtype": "float32", "is_patch_data": True, "value_range": [0, 1]}
    return {
        "version": "0.1.0",
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "name": f"Tiny {network}",
        "task": "Organs in nothing",
        "description": "Random weights \x1b[31mwith colour.",
        "authors": "nobody",
        "copyright": "Copyright (c) nobody",
        "network_data_format": {
            "inputs": {
                "image": {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, **patch}
                | {"channel_def": {"0": "image"}}
            },
            "outputs": {
                "pred": {"type": "image", "format": "segmentation", "num_channels": channels, **patch}
                | {"channel_def": {"0": "background", "1": "left organ"}}
            },
        },
    }


def build_network(network: str) -> torch.nn.Module:
    """The network of a bundle with its random weights."""
    from monai.networks import nets

    torch.manual_seed(5)
    built = getattr(nets, network)(**NETWORKS[network])
    for parameter in built.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.5)  # else most voxels get one class
    return built.eval()


def build_zoo_bundle(folder: Path, network: str = "UNet", *, form: str = "json") -> Path:
    """A whole bundle in `folder`, which must not exist; returns it."""
    for inner in ("configs", "models", "docs"):
        (folder / inner).mkdir(parents=True)
    write_config(folder, config(network), form=form)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata(network)), encoding="utf-8")
    torch.save(build_network(network).state_dict(), folder / "models" / "model.pt")
    (folder / "LICENSE").write_text("Apache-2.0", encoding="utf-8")
    return folder


def write_config(folder: Path, content: dict[str, Any], *, form: str = "json") -> None:
    """Replace the inference configuration of a bundle."""
    text = json.dumps(content) if form == "json" else yaml.safe_dump(content)
    (folder / "configs" / f"inference.{form}").write_text(text, encoding="utf-8")
