"""Training in several processes of one `torchrun`, one per GPU: each learns from its own images, all stay equal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are; (0, 1) without `torchrun`."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str) -> str:
    """The device of this process: with several of them "cuda" is the GPU of its local rank."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and rank_and_size()[1] > 1 else device


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that `torchrun` started; nothing happens without it."""
    if rank_and_size()[1] == 1:
        yield
        return
    distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes."""
    _average([p.grad for p in parameters if p.grad is not None])


def average_buffers(network: nn.Module) -> None:
    """Replace running statistics by their mean over all processes."""
    _average([b for b in network.buffers() if b.is_floating_point()])


def mean_of_all(value: torch.Tensor) -> torch.Tensor:
    """The mean of a scalar over all processes, so that all of them decide alike."""
    shared = value.detach().clone()
    _average([shared])
    return shared


def any_of_all(happened: bool, device: str) -> bool:
    """Whether it happened in any of the processes."""
    return float(mean_of_all(torch.tensor(float(happened), device=device))) > 0


def _average(tensors: list[torch.Tensor]) -> None:
    """One message for all of them."""
    if not distributed.is_initialized() or not tensors:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(together)
    together /= distributed.get_world_size()
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
