"""Let the grey values of the image itself decide where a structure ends (mixture model, Wells et al., TMI 1996).

A network that learned on images of every contrast knows where structures are, but draws borders as blurred as its
features. Within one image each class has a mean and a spread of grey values, and both can be read off through the
network's own probabilities. With the network as prior, Bayes' rule gives

    p(class | place, grey)  ~  p(class | place)^a * N(grey; mean_class, variance_class)

and a few rounds of reading off and applying. No parameter is learned; where two classes look alike the network decides.
What is background it decides alone: face and scalp may well be as grey as a cortex.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg_kernels.dispatch import is_recorded

_SLAB = 4  # planes decided at once: what stays in the cache costs a third of the time


class GreyValuePosterior(nn.Module):
    """Class scores sharpened by the grey values of the window they belong to.

    Args:
        classes: Scores that are classes, background first; further outputs (a side) pass unchanged.
        rounds: How often means and variances are read off.
        prior: Exponent a of the network's probabilities, below 1 because neighbouring voxels repeat each other.
        stride: Every how many voxels per axis the grey values are read; a million are plenty for a mean.
        floor: Least variance, above 0, of grey values scaled to about [0, 1].
    """

    def __init__(
        self, classes: int, *, rounds: int = 3, prior: float = 0.7, stride: int = 2, floor: float = 1e-4
    ) -> None:
        super().__init__()
        self.classes, self.rounds, self.prior, self.stride, self.floor = classes, rounds, prior, stride, floor

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """(B, K, *grid) scores and the (B, 1, *grid) image they belong to; to (B, K, *grid) float32 scores."""
        some = (slice(None), slice(None), *[slice(None, None, self.stride)] * (image.dim() - 2))
        sample = self.prior * scores[:, : self.classes][some].float().log_softmax(1).flatten(2)  # (B, C, n)
        grey = image[some].float().flatten(2)  # (B, 1, n)
        share = (sample / self.prior).exp()
        for _ in range(self.rounds):
            mean, variance = self._moments(share, grey)
            share = (sample + _log_normal(grey, mean, variance)).softmax(1)
        mean, variance = self._moments(share, grey)
        if is_recorded():  # a trace would keep the number of slabs
            return self._decide(scores, image, mean, variance)
        slabs = zip(scores.split(_SLAB, dim=2), image.split(_SLAB, dim=2), strict=True)
        return torch.cat([self._decide(part, grey, mean, variance) for part, grey in slabs], dim=2)

    def _decide(self, scores: Tensor, image: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Bayes' rule among the classes that are not background, whose sum stays what the network said."""
        network = scores[:, : self.classes].float().log_softmax(1)
        inside = self.prior * network[:, 1:].flatten(2)
        inside = inside + _log_normal(image.float().flatten(2), mean[:, 1:], variance[:, 1:])
        inside = inside.log_softmax(1).view_as(network[:, 1:]) + network[:, 1:].logsumexp(1, keepdim=True)
        return torch.cat((network[:, :1], inside, scores[:, self.classes :].float()), dim=1)

    def _moments(self, share: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each class, (B, C, 1), from shares (B, C, n) and grey values (B, 1, n)."""
        powers = torch.cat((torch.ones_like(grey), grey, grey.square()), dim=1)  # (B, 3, n)
        count, first, second = (share @ powers.mT).unbind(-1)
        count = count + 1  # a class that is not there keeps finite moments
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0) + self.floor
        return mean[..., None], variance[..., None]


def _log_normal(grey: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log density up to a constant, (B, C, n), written as a parabola so that no third tensor of that size is made."""
    square, line = -0.5 / variance, mean / variance
    constant = -0.5 * (mean.square() / variance + variance.log())
    return (square * grey + line) * grey + constant
