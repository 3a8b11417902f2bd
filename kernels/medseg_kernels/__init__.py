"""Fused attention and sampling ops of the networks: each one function, exact on every device."""

from medseg_kernels.layout import SegmentLayout, layout_dense, layout_from_labels, layout_windows
from medseg_kernels.region_attention import region_attention
from medseg_kernels.relative_attention import relative_attention, relative_position
from medseg_kernels.rope_attention import rope_attention, rotate
from medseg_kernels.softmax_attention import segment_attention
from medseg_kernels.window_attention import window_attention

__all__ = [
    "SegmentLayout",
    "layout_dense",
    "layout_from_labels",
    "layout_windows",
    "region_attention",
    "relative_attention",
    "relative_position",
    "rope_attention",
    "rotate",
    "segment_attention",
    "window_attention",
]
