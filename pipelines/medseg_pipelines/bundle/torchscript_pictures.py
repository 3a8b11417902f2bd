"""A network of pictures as a TorchScript file that takes whole ones, so that stock MONAI transforms can serve it.

Close to what medseg does and not the same: the field of view is found in a simpler way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_pipelines.bundle.torchscript_slices import ramp, starts
from medseg_pipelines.sections import PictureInference, PicturePreparation


class WholePicture(nn.Module):
    """Colours of pictures to a score per label: the largest is that of the label that the recipe's threshold gives.

    Args:
        tile: (1, C, side, side) to logits (1, K, side, side).
        preparation: Of the recipe.
        inference: Of the recipe.
        masks: How many of the K outputs count, the first ones.
    """

    mix: Tensor
    shift: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(
        self, tile: nn.Module, preparation: PicturePreparation, inference: PictureInference, *, masks: int
    ) -> None:
        super().__init__()
        self.masks, self.tile, self.side, self.threshold = masks, tile, inference.window, inference.threshold
        self.round, self.across, self.zoom = preparation.field == "fundus", preparation.diameter or 0, preparation.zoom
        self.flatten, (self.low, self.high) = preparation.flatten or 0.0, preparation.stretch or (0.0, 0.0)
        self.register_buffer("mix", torch.tensor(preparation.mix, dtype=torch.float32))
        self.register_buffer("shift", torch.tensor(preparation.mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("scale", torch.tensor(preparation.deviation, dtype=torch.float32)[:, None, None])
        self.register_buffer("weight", ramp(inference.window))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 or 3, W, H), 0 to 1, to (B, masks + 1, W, H): the threshold, then the probability of each label."""
        pictures = [self.scores(image[number].float().expand(3, -1, -1)) for number in range(image.shape[0])]
        return torch.stack(pictures)

    def scores(self, picture: Tensor) -> Tensor:
        """(3, W, H) to (masks + 1, W, H)."""
        field = self.field(picture)
        factor = self.zoom if self.across == 0 else float(self.across) / self.diameter(field)
        size = [max(1, int(side * factor + 0.5)) for side in picture.shape[1:]]
        inside = self.resized(field.float()[None], size) > 0.5
        planes = self.resized(picture, size)
        if self.high > self.low:
            flat = picture.flatten()
            flat = flat[:: max(1, flat.shape[0] // 1000000)]
            low, high = torch.quantile(flat, self.low / 100), torch.quantile(flat, self.high / 100)
            planes = ((planes - low) / (high - low).clamp(min=1e-3)).clamp(-0.5, 1.5)
        if self.flatten > 0:
            planes = self.even(planes, inside.float(), self.flatten * self.diameter(inside[0]))
        seen = torch.tensordot(self.mix, planes, 1)
        drawn = self.tiled((seen - self.shift) / self.scale * inside)
        found = self.resized(drawn, [picture.shape[1], picture.shape[2]]) * field
        return torch.cat((torch.full_like(found[:1], self.threshold), found))

    def field(self, picture: Tensor) -> Tensor:
        """(W, H): where a picture with dark corners shows something, else everywhere."""
        everywhere = torch.ones_like(picture[0], dtype=torch.bool)
        if not self.round:
            return everywhere
        width, height = picture.shape[1], picture.shape[2]
        bright = F.avg_pool2d(picture.amax(0)[None], 5, 1, 2, count_include_pad=False)[0]
        x, y = max(1, width // 12), max(1, height // 12)
        corners = torch.stack(
            (bright[:x, :y].median(), bright[-x:, :y].median(), bright[:x, -y:].median(), bright[-x:, -y:].median())
        ).mean()
        middle = bright[width // 4 : width - width // 4, height // 4 : height - height // 4].median()
        if bool(corners > 0.7 * middle):
            return everywhere
        return bright > corners + 0.3 * (middle - corners)

    def diameter(self, field: Tensor) -> float:
        """The longer side of the box around a field."""
        columns, rows = field.any(1).nonzero().flatten(), field.any(0).nonzero().flatten()
        if columns.shape[0] == 0:
            return 1.0
        return float(max(int(columns[-1] - columns[0]), int(rows[-1] - rows[0])) + 1)

    def even(self, planes: Tensor, inside: Tensor, sigma: float) -> Tensor:
        """Planes freed of uneven light (`medseg.fundus.flatten_light`)."""
        share = self.blurred(inside, sigma).clamp(min=1e-6)
        rest = (planes - self.blurred(planes * inside, sigma) / share) * inside
        variance = self.blurred(rest * rest, sigma) / share
        mean = (variance * inside).sum((1, 2), keepdim=True) / inside.sum().clamp(min=1.0)
        return (rest / (variance + 0.25 * mean + 1e-12).sqrt()).clamp(-4.0, 4.0)

    def blurred(self, planes: Tensor, sigma: float) -> Tensor:
        """Through a Gaussian, nothing beyond the border."""
        reach = max(1, int(3 * sigma))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=planes.device) / sigma) ** 2)
        line = line / line.sum()
        along = F.conv2d(planes[:, None], line[None, None, :, None], padding=[reach, 0])
        return F.conv2d(along, line[None, None, None, :], padding=[0, reach])[:, 0]

    def resized(self, planes: Tensor, size: list[int]) -> Tensor:
        """(C, W, H) to (C, *size)."""
        smaller = size[0] < planes.shape[1]
        return F.interpolate(planes[None], size, mode="bilinear", align_corners=False, antialias=smaller)[0]

    def tiled(self, seen: Tensor) -> Tensor:
        """(C, w, h) to probabilities (masks, w, h), tiles blended; the network sees rows first."""
        width, height = seen.shape[1], seen.shape[2]
        whole = F.pad(seen, [0, max(0, self.side - height), 0, max(0, self.side - width)])
        total = torch.zeros(0)
        weights = torch.zeros_like(whole[0])
        for x in starts(whole.shape[1], self.side):
            for y in starts(whole.shape[2], self.side):
                part = whole[None, :, x : x + self.side, y : y + self.side].transpose(2, 3)
                found = self.tile(part)[0, : self.masks].sigmoid().transpose(1, 2)
                if total.shape[0] == 0:
                    total = torch.zeros([found.shape[0], whole.shape[1], whole.shape[2]], device=seen.device)
                total[:, x : x + self.side, y : y + self.side] += found * self.weight
                weights[x : x + self.side, y : y + self.side] += self.weight
        return (total / weights)[:, :width, :height]
