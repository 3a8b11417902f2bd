"""Memory for results and for what lies between, on a CPU, where touching fresh memory often costs more than the work.

Each 4 KB of it is a page fault at first touch: for a map of 50 MB longer than many an op takes to fill it. So what lies
between goes through buffers that are kept, and large results are asked for in pages of 2 MB, which Linux hands out to
those who ask. (PyTorch itself asks where THP_MEM_ALLOC_ENABLE=1 is set before it is imported.)
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

_PAGE = 1 << 21  # bytes of a large page on the processors that have one size of them
_LEAST = 1 << 25  # bytes; glibc takes smaller blocks from memory that was touched before, larger ones always fresh


class Buffers:
    """Memory by name that is used again and again while an op works through its chunks.

    Args:
        dtype: Of all of them.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor that holds anything, until the same name is asked for again."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=self._dtype)
        return held[:size].view(shape)


def empty_large(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor with dtype and device of `like`; on a CPU in large pages where the system has any."""
    out = like.new_empty(tuple(shape))
    size = out.numel() * out.element_size()
    if out.device.type == "cpu" and size >= _LEAST and sys.platform == "linux":
        first = -(-out.data_ptr() // _PAGE) * _PAGE
        last = (out.data_ptr() + size) // _PAGE * _PAGE
        # A hint: a system without large pages refuses, and nothing is lost.
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)
    return out


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
