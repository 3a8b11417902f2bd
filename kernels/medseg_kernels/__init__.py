"""Fused attention and sampling ops of the networks: each one function, exact on every device."""

from medseg_kernels.deformable_sampling import deform_sample
from medseg_kernels.dense import dense, dense_add
from medseg_kernels.dense_attention import dense_attention
from medseg_kernels.guided_filter import box_sum, guided_filter
from medseg_kernels.haar3d import haar3d, haar3d_project, ihaar3d
from medseg_kernels.layout import SegmentLayout, layout_dense, layout_from_labels, layout_windows
from medseg_kernels.linear_attention import linear_attention
from medseg_kernels.region_attention import region_attention
from medseg_kernels.relative_attention import relative_attention, relative_position
from medseg_kernels.rope_attention import rope_attention, rotate
from medseg_kernels.softmax_attention import segment_attention
from medseg_kernels.window_attention import window_attention

__all__ = [
    "SegmentLayout",
    "box_sum",
    "deform_sample",
    "dense",
    "dense_add",
    "dense_attention",
    "guided_filter",
    "haar3d",
    "haar3d_project",
    "ihaar3d",
    "layout_dense",
    "layout_from_labels",
    "layout_windows",
    "linear_attention",
    "region_attention",
    "relative_attention",
    "relative_position",
    "rope_attention",
    "rotate",
    "segment_attention",
    "window_attention",
]
