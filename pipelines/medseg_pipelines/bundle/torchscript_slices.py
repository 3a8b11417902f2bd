"""A network of slices as a TorchScript file that takes whole volumes, so that stock MONAI transforms can serve it.

Close to what medseg does and not the same: regions and noise level are found in a simpler way, and slices are cut into
tiles of one size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.blank import blank_voxels, carried_on
from medseg.guide import MARGIN, flat_noise, non_local_means, repeated, tissue_noise
from medseg_pipelines.bundle.torchscript import recorded
from medseg_pipelines.slices import PlainSlices, channels_of, holds_magnitudes

_BINS = 256
_STEPS = 20  # of the search for clusters; they hardly move after ten


class WholeVolume(nn.Module):
    """Grey values of volumes to restored ones, slices along the last axis.

    Args:
        tile: (1, C + 1, side, side) to (1, 1, side, side).
        options: Of the slices.
        clusters: Regions of similar grey value.
        side: Of a tile, in pixels.
    """

    weight: Tensor

    def __init__(self, tile: nn.Module, options: PlainSlices, clusters: int, side: int) -> None:
        super().__init__()
        self.tile, self.clusters, self.side = tile, clusters, side
        self.bins, self.steps, self.margin = _BINS, _STEPS, MARGIN  # a compiled method sees nothing of its module
        self.context, self.noise_map, self.guide = options.context, options.noise_map, options.guide
        self.alike, self.magnitudes = options.alike, holds_magnitudes(options)
        self.share = options.percentile / 100
        self.low, self.high = options.source if options.source is not None else (0.0, 0.0)
        self.least, self.most = options.limits
        self.register_buffer("weight", ramp(side))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, X, Y, S) to the same, float32."""
        image = image.float()
        volumes = [self.restored(image[number, 0]) for number in range(image.shape[0])]
        return torch.stack(volumes)[:, None]

    def restored(self, volume: Tensor) -> Tensor:
        """(X, Y, S) to the same."""
        low, high = self.low, self.high
        if high <= low:
            flat = volume.flatten()
            high = float(torch.quantile(flat[:: max(1, flat.shape[0] // 1000000)], self.share))
            if high <= 0:
                high = max(float(volume.max()), 1e-6)
        acquired = ((volume - low) / (high - low)).clamp(self.least, self.most)
        blank = blank_voxels(acquired)
        seen = carried_on(acquired, blank, self.margin)
        regions = self.regions(acquired)
        level, guide = 0.0, seen
        if self.guide:
            level = tissue_noise(acquired)
            guide = non_local_means(seen, level)
        elif self.alike > 0:
            level = flat_noise(acquired)
        found = torch.zeros_like(volume)
        for number in range(volume.shape[2]):
            noise = detail_level(acquired[:, :, number], blank[:, :, number]) if self.noise_map else 0.0
            found[:, :, number] = self.slice_residual(seen, guide, noise, regions, number)
        if self.alike > 0:
            given_back = repeated(-found, seen + found, level, self.alike, magnitudes=self.magnitudes, blank=blank)
            found = (seen + found + given_back).clamp(self.least, self.most) - seen
        return volume + found.masked_fill(blank, 0.0) * (high - low)

    def regions(self, seen: Tensor) -> Tensor:
        """Clusters of grey value in (X, Y, S), as numbers from 0 on."""
        smooth = F.avg_pool2d(seen.permute(2, 0, 1)[:, None], 3, 1, 1, count_include_pad=False)[:, 0].permute(1, 2, 0)
        low, high = float(smooth.min()), float(smooth.max())
        bins = ((smooth - low) / max(high - low, 1e-6) * (self.bins - 1)).round().long()
        counts = torch.bincount(bins.flatten(), minlength=self.bins).float()
        places = torch.arange(self.bins, device=seen.device).float()
        centres = torch.linspace(0.0, float(self.bins - 1), self.clusters, device=seen.device)
        nearest = torch.zeros(self.bins, dtype=torch.long, device=seen.device)
        for _ in range(self.steps):
            nearest = (places[:, None] - centres[None, :]).abs().argmin(1)
            mass = torch.zeros_like(centres).index_add(0, nearest, counts)
            sums = torch.zeros_like(centres).index_add(0, nearest, counts * places)
            centres = torch.where(mass > 0, sums / mass.clamp(min=1.0), centres)
        return nearest[bins]

    def slice_residual(self, seen: Tensor, guide: Tensor, noise: float, regions: Tensor, number: int) -> Tensor:
        """(X, Y): what is added to one slice, tiles blended."""
        reach = self.context // 2
        around = torch.arange(number - reach, number + reach + 1, device=seen.device).clamp(0, seen.shape[2] - 1)
        channels = [seen.index_select(2, around).permute(2, 0, 1)]
        middle = seen[:, :, number]
        if self.guide:
            channels.append(guide[:, :, number][None])
        if self.noise_map:
            channels.append(torch.full_like(middle, noise)[None])
        channels.append(regions[:, :, number].float()[None])
        whole = torch.cat(channels)[None]
        width, height = middle.shape[0], middle.shape[1]
        whole = F.pad(whole, [0, max(0, self.side - height), 0, max(0, self.side - width)], mode="replicate")
        total = torch.zeros_like(whole[0, 0])
        weights = torch.zeros_like(total)
        for x in starts(whole.shape[2], self.side):
            for y in starts(whole.shape[3], self.side):
                found = self.tile(whole[:, :, x : x + self.side, y : y + self.side])[0, 0]
                total[x : x + self.side, y : y + self.side] += found * self.weight
                weights[x : x + self.side, y : y + self.side] += self.weight
        return (total / weights)[:width, :height].clamp(self.least, self.most) - middle


def detail_level(image: Tensor, blank: Tensor) -> float:
    """The noise level of (X, Y) but for what is blank, as `medseg.noise.noise_level` finds it."""
    across = image[:-2] - 2 * image[1:-1] + image[2:]
    detail = ((across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]) / 6).abs()
    filled = ~blank[1:-1, 1:-1]
    return float(detail[filled].median()) / 0.6745 if bool(filled.any()) else 0.0


def ramp(side: int) -> Tensor:
    """Weights of the pixels of a tile, (side, side), that fall towards its borders."""
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2)
    return (line[:, None] * line[None, :]).clamp(min=1e-3)


def starts(size: int, side: int) -> list[int]:
    """First pixels of the tiles along an axis, a quarter of a tile repeated at least."""
    step = side * 3 // 4
    count = (size - side + step - 1) // step + 1
    return [number * (size - side) // max(1, count - 1) for number in range(count)]


def recorded_tile(network: nn.Module, options: PlainSlices, clusters: int, side: int) -> nn.Module:
    """A network of slices recorded on one tile; it takes no other size."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((1, channels_of(options), side, side), generator=generator)
    ids = torch.randint(clusters, (1, 1, side, side), generator=generator).float()
    return recorded(network, torch.cat((image, ids), 1))
