"""What the benchmarks run on: a model folder with or without trained weights, and a head to segment."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy import ndimage

from medseg.io import write
from medseg.networks import build_network
from medseg.volume import Volume
from medseg.weights import save_weights, sha256_of
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, recipe_folder

MODEL = "brain-structures"


def model_folder(folder: Path) -> Path:
    """The shipped model where its weights are there, else a copy of its recipe with random weights in `folder`."""
    shipped = recipe_folder(MODEL)
    recipe = load_recipe(MODEL)
    if (shipped / recipe.weights.file).is_file():
        return shipped
    print("weights of the model are not here: random ones take the same time", file=sys.stderr)
    torch.manual_seed(0)
    network = build_network(recipe.network.name, **recipe.network.options)
    path = save_weights(network.state_dict(), folder / recipe.weights.file, half=recipe.weights.dtype == "float16")
    content = yaml.safe_load((shipped / RECIPE_FILE).read_text(encoding="utf-8"))
    content["weights"] |= {"sha256": sha256_of(path), "trained": False}
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def write_head(path: Path, shape: tuple[int, int, int]) -> Path:
    """A textured ellipsoid that fills its field of view as a whole head does, 1 mm, in noise that no crop removes."""
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
    radius = np.sqrt(sum((axis**2 for axis in axes), np.zeros(shape, np.float32)))
    texture = ndimage.gaussian_filter(generator.standard_normal(shape, np.float32), 3) * 2000
    voxels = np.where(radius < 0.9, 500 + 200 * axes[2] + texture, 0) + generator.integers(0, 30, shape)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -np.array(shape) / 2
    write(Volume(voxels.clip(0).astype(np.int16), affine), path)
    return path
