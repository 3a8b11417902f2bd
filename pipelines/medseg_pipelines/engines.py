"""Ways to run a network; all give the same scores to rounding.

Measured on two cores, one 128x160x128 window of `brain-structures` (`benchmarks/bench_engines.py`): packing the
convolution weights channels-last takes 0.78 of the processor time of the plain network and needs no preparation, so it
is the default on a CPU. `compiled` first compiles for minutes there; it pays on long runs on a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medseg.errors import UsageError

Predict = Callable[[Tensor], Tensor]
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def available() -> list[str]:
    """Engines that work on this machine; `eager` always does and is the reference."""
    names = ["eager", "channels-last"]
    if shutil.which("g++") or torch.cuda.is_available():
        names.append("compiled")
    return names


def default_engine(device: str) -> str:
    """What "auto" means on a device."""
    return "channels-last" if torch.device(device).type == "cpu" else "eager"


def prepare(network: nn.Module, *, engine: str = "auto", device: str = "cpu") -> Predict:
    """A network made ready to predict.

    Args:
        network: In evaluation mode; moved to the device and, but for `eager`, re-packed in place.
        engine: "auto" or one of `available()`.
        device: A torch device.

    Returns:
        A function from input to output tensors, both on the device.

    Raises:
        UsageError: The engine is not to be had here.
    """
    name = default_engine(device) if engine == "auto" else engine
    if name not in available():
        raise UsageError(f"engine must be one of auto, {', '.join(available())}, got '{engine}'")
    network = network.to(device)
    if name == "eager":
        return network
    if name == "channels-last":
        return _channels_last(network)
    return torch.compile(network, dynamic=False)


def _channels_last(network: nn.Module) -> Predict:
    """Convolutions and their features with channels as the fastest axis."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            layout = _LAYOUTS.get(parameter.dim())
            is_convolution = isinstance(module, nn.modules.conv._ConvNd)
            if layout is not None and is_convolution and name == "weight":
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return network
