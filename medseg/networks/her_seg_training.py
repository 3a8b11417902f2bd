"""What HER-Seg learns before it learns to segment: the features of Segment Anything (PFD, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.her_seg import HERSeg, load_published

_FIRST = "image_encoder.patch_embed.proj.weight"


class Student(nn.Module):
    """Encoder and neck of HER-Seg under the names of a published pre-training checkpoint.

    Args:
        network: Whose parts these are, not copies.
    """

    def __init__(self, network: HERSeg) -> None:
        super().__init__()
        self.image_encoder, self.neck = network.image_encoder, network.neck

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, 16 h, 16 w) to the feature (B, decoder_dim, h, w)."""
        return self.neck(self.image_encoder(image))


def distillation_loss(feature: Tensor, taught: Tensor) -> Tensor:
    """Mean squared error between the student's feature and the teacher's, (B, C, h, w) both, to a scalar."""
    return F.mse_loss(feature.float(), taught.float())


def start_from(network: HERSeg, state: Mapping[str, Tensor]) -> list[str]:
    """Fill a network with what was learned before, whatever the channels of its images.

    A network of grey values gets the sum of the filters of red, green and blue: what they give where all are equal.

    Args:
        network: Its parameters keep their dtype.
        state: Of a pre-training or of a whole network of the same sizes, as for `load_published`.

    Returns:
        Names that were left as they were.

    Raises:
        ModelMissing: The names or shapes are not the network's.
    """
    filters = state.get(_FIRST)
    if filters is not None and filters.shape[1] == 3 and network.image_encoder.patch_embed.proj.in_channels == 1:
        state = {**state, _FIRST: filters.sum(1, keepdim=True)}
    return load_published(network, state)
