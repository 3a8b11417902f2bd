"""Attention within regions of any shape (RAT, region attention): softmax over the tokens that bear the same label.

The published code builds a tokens x tokens matrix with -1000 between regions and attends densely. Tokens of other
regions get weight exp(-1000) = 0 that way, so attending inside each region alone is the same function at the cost of
sum_r n_r^2 instead of N^2. B images, N tokens, h heads, D and Dv widths, n_r tokens of region r.
"""

from __future__ import annotations

from torch import Tensor

from medseg_kernels.dispatch import is_recorded, scripted_as
from medseg_kernels.layout import SegmentLayout, layout_from_labels
from medseg_kernels.softmax_attention import segment_attention, segment_attention_reference


def region_attention_reference(q: Tensor, k: Tensor, v: Tensor, labels: Tensor | SegmentLayout, scale: float) -> Tensor:
    """What the op must equal: dense attention with a mask; any device, any dtype, memory B h N^2."""
    if not isinstance(labels, Tensor):
        flat = segment_attention_reference(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), labels, scale)
        return flat.unflatten(0, [q.shape[0], q.shape[1]])
    region = labels.flatten(1)
    same = region[:, None, :, None] == region[:, None, None, :]  # (B, 1, N, N)
    logits = q.transpose(1, 2) @ k.transpose(1, 2).mT * scale
    return (logits.masked_fill(~same, float("-inf")).softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


@scripted_as(region_attention_reference)
def region_attention(q: Tensor, k: Tensor, v: Tensor, labels: Tensor | SegmentLayout, *, scale: float) -> Tensor:
    """Let every token attend to the tokens of its own region.

    Args:
        q: Queries, (B, N, h, D), floating point; views of a fused projection are read in place.
        k: Keys, same shape and dtype.
        v: Values, (B, N, h, Dv).
        labels: Region of each token, (B, N) or (B, H, W) with H * W = N, any numbers; or the layout that
            `layout_from_labels` made of it, which layers on the same image should share.
        scale: Factor on q k^T. RAT takes h**-0.5, the number of heads, not their width.

    Returns:
        (B, N, h, Dv) in the dtype of `q`.

    Raises:
        ValueError: The labels do not name every token.
    """
    batch, tokens = q.shape[:2]
    named = labels.q_segment.numel() if isinstance(labels, SegmentLayout) else labels.numel()
    if named != batch * tokens:
        raise ValueError(f"labels must name all {batch} x {tokens} tokens, got {named}")
    if isinstance(labels, Tensor) and is_recorded():
        return region_attention_reference(q, k, v, labels, scale)
    layout = layout_from_labels(labels) if isinstance(labels, Tensor) else labels
    out = segment_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), layout, scale=scale)
    return out.unflatten(0, (batch, tokens))
