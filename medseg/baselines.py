"""Restoration without a network: what users would take otherwise, from scikit-image, and the noise level it needs."""

from __future__ import annotations

import numpy as np


def non_local_means(image: np.ndarray, level: float) -> np.ndarray:
    """Averages of patches that look alike (Buades et al. 2005), in 3D with the usual patch of 5 and reach of 5.

    Args:
        image: (X, Y, Z), float32.
        level: Standard deviation of the noise in grey values.

    Returns:
        Same shape, float32.
    """
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        image, patch_size=5, patch_distance=5, h=0.8 * level, sigma=level, fast_mode=True, channel_axis=None
    )


def wavelet_shrinkage(image: np.ndarray, level: float) -> np.ndarray:
    """Soft thresholds of wavelet details by BayesShrink (Chang et al. 2000), in 3D; arguments as above."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(image, sigma=level, method="BayesShrink", mode="soft", wavelet="sym4", rescale_sigma=False)


def total_variation(image: np.ndarray, level: float, *, strength: float = 1.0) -> np.ndarray:
    """The nearest image of small total variation (Rudin et al. 1992, by Chambolle 2004), in 3D.

    Args:
        image: (X, Y, Z), float32.
        level: Standard deviation of the noise in grey values.
        strength: Weight of the total variation in noise levels.
    """
    from skimage.restoration import denoise_tv_chambolle

    scaled = denoise_tv_chambolle(image / max(level, 1e-6), weight=strength, max_num_iter=60)
    return (scaled * max(level, 1e-6)).astype(np.float32)


def estimated_level(image: np.ndarray) -> float:
    """The noise level as these filters are commonly told it: the median of wavelet details (Donoho 1994).

    Args:
        image: (X, Y, Z), float32.

    Returns:
        Standard deviation in grey values.
    """
    from skimage.restoration import estimate_sigma

    return float(estimate_sigma(image, channel_axis=None))


def without_rician_bias(image: np.ndarray, level: float) -> np.ndarray:
    """Magnitudes with the mean contribution of the noise taken off, sqrt(max(x^2 - 2 level^2, 0)) (Gudbjartsson 1995).

    Args:
        image: Restored magnitudes, not negative.
        level: Standard deviation of the noise in each part of the complex image.
    """
    return np.sqrt(np.clip(np.square(image) - 2 * level**2, 0, None))
