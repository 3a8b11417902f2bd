"""A head of a few boxes, for tests of the image generator and of training."""

import numpy as np

from medseg.synthesis import Tissue
from medseg.volume import Volume

# ids of the left side first
TISSUES = (
    Tissue(ids=(), target=0, brain=False),
    Tissue(ids=(2, 41), right=1, target=1, white=1.0),
    Tissue(ids=(3, 42), right=1, target=2, white=0.0),
    Tissue(ids=(4,), target=3, fluid=True),
    Tissue(ids=(30,), target=None),
    Tissue(ids=(502,), target=0, brain=False),
)


def head_labels(size: int = 48) -> Volume:
    """RAS at 1 mm: shell 502 around cortex around white matter around fluid; id 2, 3 left (low X), 41, 42 right."""
    axes = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij")
    reach = np.max(np.abs(axes), axis=0) / (size / 2)
    left = axes[0] < 0
    labels = np.zeros((size,) * 3, np.uint16)
    labels[reach < 0.75] = 502
    labels[reach < 0.6] = np.where(left, 3, 42)[reach < 0.6]
    labels[reach < 0.45] = np.where(left, 2, 41)[reach < 0.45]
    labels[reach < 0.15] = 4
    middle = slice(size // 2, size // 2 + 2)
    labels[size // 2 + 8 : size // 2 + 10, middle, middle] = 30
    return Volume(labels, np.eye(4), kind="labels")
