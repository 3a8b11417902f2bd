"""The wavelet transforms: of volumes by our own Haar op, of slices with any wavelet by pytorch-wavelets.

B batch, C channels. Bands are named by approximation or detail along each axis, in the order of the axes and with
approximation first: aaa, aad, ada, add, daa, dad, dda, ddd of volumes, and aa, da, ad, dd of slices (H before W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.errors import UsageError
from medseg_kernels import haar3d, ihaar3d


def even(x: Tensor) -> Tensor:
    """Give each odd axis behind the second one more plane of zeros at its end."""
    pad = [n for side in reversed(x.shape[2:]) for n in (0, side % 2)]
    return F.pad(x, pad) if any(pad) else x


def volume_bands(x: Tensor) -> Tensor:
    """Haar bands of volumes of any size: (B, C, D, H, W) to (B, 8, C, ceil(D / 2), ceil(H / 2), ceil(W / 2))."""
    return haar3d(even(x)).unflatten(1, (8, x.shape[1]))


def from_volume_bands(bands: Tensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Undo `volume_bands`.

    Args:
        bands: (B, 8, C, d, h, w).
        shape: D, H, W of the volume; by default all even, added planes included.

    Returns:
        (B, C, D, H, W).
    """
    whole = ihaar3d(bands.flatten(1, 2))
    return whole if shape is None else whole[..., : shape[0], : shape[1], : shape[2]]


def slice_bands(x: Tensor, wavelet: str = "haar") -> Tensor:
    """One level of a wavelet transform of slices, zero beyond their borders.

    Gradients are exact in this mode for every wavelet and size; in the others of pytorch-wavelets they are not.

    Args:
        x: (B, C, H, W), float32.
        wavelet: As PyWavelets names it.

    Returns:
        (B, 4, C, h, w), with h = floor((H + taps - 1) / 2) and w alike.

    Raises:
        UsageError: The package is not installed.
    """
    low, (high,) = _library().DWTForward(J=1, wave=wavelet, mode="zero").to(x.device)(x)
    return torch.cat((low[:, None], high.movedim(2, 1)), dim=1)


def from_slice_bands(bands: Tensor, shape: tuple[int, int], wavelet: str = "haar") -> Tensor:
    """Undo `slice_bands`.

    Args:
        bands: (B, 4, C, h, w).
        shape: H and W of the slices.
        wavelet: The same.

    Returns:
        (B, C, H, W).
    """
    inverse = _library().DWTInverse(wave=wavelet, mode="zero").to(bands.device)
    return inverse((bands[:, 0], [bands[:, 1:].movedim(1, 2)]))[..., : shape[0], : shape[1]]


def _library() -> Any:
    """pytorch-wavelets, loaded only where slices are transformed: it is slow to import and wants an old setuptools."""
    try:
        import pytorch_wavelets
    except ImportError:
        raise UsageError(
            "wavelets of slices need pytorch-wavelets, PyWavelets and setuptools below 81; "
            'pip install "medseg[wavelets]"'
        ) from None
    return pytorch_wavelets
