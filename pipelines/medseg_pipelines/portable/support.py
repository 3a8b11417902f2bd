"""Our segmentation by example as MONAI parts, with the examples of one support set for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.inferers.inferer import Inferer
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn

from medseg.networks.sam2 import PATCH
from medseg.networks.sam2_sgp import Sam2Sgp
from medseg.networks.sam2_sgp_matching import CELL, Marks
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.portable.volumes import as_volume
from medseg_pipelines.support_walk import Pool, Walk, ask, labelled, planes_of, runs_without, slices_along


class KeptPool(nn.Module):
    """A `Pool` as buffers, all zero until they are loaded.

    Args:
        network: That made it.
        side: Of the slices as the network sees them.
        cases: Number of the case of each slice.
    """

    def __init__(self, network: Sam2Sgp, side: int, cases: Sequence[int]) -> None:
        super().__init__()
        self.cases, count, grid = tuple(cases), len(cases), side // PATCH
        shapes = {
            "likeness": ((count, network.config.channels * grid**2), torch.float16),
            "memory": ((count, network.config.memory_channels, grid, grid), torch.float32),
        }
        if network.matcher is not None:
            places = (side // CELL) ** 2
            shapes["places"] = ((count, places, network.matcher.deep.out_channels), torch.float16)
            shapes["inside"] = ((count, places), torch.float32)
        for name, (shape, dtype) in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @property
    def pool(self) -> Pool:
        """As a walk reads it."""
        known = dict(self.named_buffers())
        marks = Marks(known["places"], known["inside"]) if "places" in known else None
        likeness = known["likeness"]
        return Pool(likeness, known["memory"], torch.tensor(self.cases, device=likeness.device), marks)

    def keep(self, pool: Pool) -> None:
        """Fill the buffers.

        Raises:
            RuntimeError: The pool is of another support set, or of another network.
        """
        marks = {} if pool.marks is None else {"places": pool.marks.places, "inside": pool.marks.inside}
        self.load_state_dict({"likeness": pool.likeness, "memory": pool.memory, **marks})


class SupportedSgp(nn.Module):
    """SAM2-SGP together with what it made of a support set.

    Args:
        options: Of `Sam2Sgp`.
        side: Of the slices as the network sees them.
        shown: Number of the case of each slice that shows a structure, per structure.
        examples: Slices that a query reads.
        resamples: Further runs, each without one of the cases.
    """

    def __init__(
        self, options: Mapping[str, Any], *, side: int, shown: Sequence[Sequence[int]], examples: int, resamples: int
    ) -> None:
        super().__init__()
        self.network = Sam2Sgp(**options)
        self.kept = nn.ModuleList(KeptPool(self.network, side, cases) for cases in shown)
        self.examples, self.runs = examples, runs_without(1 + max(shown[0]), resamples)

    @property
    def pools(self) -> list[Pool]:
        """One per structure."""
        return [cast(KeptPool, each).pool for each in self.kept]

    def keep(self, pools: Sequence[Pool]) -> None:
        """Fill the buffers with one pool per structure."""
        for each, pool in zip(self.kept, pools, strict=True):
            cast(KeptPool, each).keep(pool)

    def walk(self) -> Walk:
        """Through the slices of one volume."""
        pools = self.pools
        return Walk(self.network, pools, self.runs, self.examples, pools[0].memory.device)

    def forward(self, images: Tensor) -> Tensor:
        """Slices (B, 1, side, side), 0 to 1, each by itself, to the probability of structures, (B, K, side, side)."""
        pools, found = self.pools, []
        for number in range(len(images)):
            features = self.network.features(images[number : number + 1].expand(-1, 3, -1, -1))
            said = [ask(self.network, pool, features, self.runs, self.examples).logits for pool in pools]
            found.append(torch.cat([logits[:, 0].sigmoid().mean(0, keepdim=True) for logits in said]))
        return torch.stack(found)


class ExampleInferer(Inferer):
    """Walk through a volume slice by slice and give the label map at once, as `medseg infer` does.

    Args:
        axis: Of RAS, along which slices follow each other.
        side: Of the slices as the network sees them.
        extent: mm across them at least.
        labels: Ids of the structures.
        threshold: A voxel is labelled where its largest probability is above.
    """

    def __init__(self, *, axis: int, side: int, extent: float, labels: Sequence[int], threshold: float) -> None:
        super().__init__()
        self.axis, self.side, self.extent, self.labels, self.threshold = axis, side, extent, labels, threshold

    def __call__(self, inputs: Tensor, network: SupportedSgp, *args: Any, **kwargs: Any) -> Tensor:
        """(B, 1, X, Y, Z) prepared images in RAS, 0 to 1, to label ids, uint8, same shape and meta data."""
        prepare_network(network, device=str(inputs.device))
        labels = torch.stack([self._labels(inputs[number], network)[None] for number in range(len(inputs))])
        return convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]

    def _labels(self, image: Tensor, network: SupportedSgp) -> Tensor:
        """(1, X, Y, Z) to (X, Y, Z)."""
        stack, frame = slices_along(self.axis, as_volume(image), self.side, self.extent)
        walk, found = network.walk(), np.zeros(stack.shape, np.uint8)
        for number, plane in enumerate(stack):
            seen = walk.step(planes_of(plane[..., None], frame))
            found[number] = labelled(seen, frame, self.labels, self.threshold)[0]
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, 0, self.axis)))
