"""How well a volume agrees with a reference: label maps by structure, images as a whole; NumPy and SciPy only.

The surface of a structure is those of its voxels that touch the outside by a face; outside the grid is outside. All
distances are in mm and respect the spacing of each axis.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EMPTY_CONVENTION = (
    "A structure in neither label map is not counted; in only one of them its Dice and NSD are 0, its HD95 and ASD "
    "infinite (left out of the mean, and counted)."
)
DATA_RANGE_CONVENTION = (
    "PSNR, SSIM and NRMSE refer to the data range, by default maximum minus minimum of the reference; SSIM is the mean "
    "of a 3D map with a Gaussian window of 11 voxels (sigma 1.5 voxels) over voxels whose window lies inside it. "
    "Edge preservation is the correlation of gradient magnitudes; the bias is the mean error in the flattest fifth of "
    "the tissue, as a fraction of the data range."
)

_SIGMA = 1.5  # voxels; window, sigma and both constants are those of Wang et al. 2004, section III
_RADIUS = 5
_C1, _C2 = 0.01, 0.03
_CHUNK = 1 << 20  # voxels whose difference is held in double precision at once
_FLAT_SHARE = 0.2
_SLAB = 32  # slices whose SSIM is computed at once: the nine images it needs never stand in memory at full size

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, from which all surface measures follow.

    Attributes:
        there: mm from each surface voxel of the structure to the surface of the reference; empty where either is.
        back: mm from each surface voxel of the reference to the surface of the structure; likewise.
        undefined: The value of a distance where one structure is empty (inf) or both are (nan); None otherwise.
    """

    there: NDArray[np.float64]
    back: NDArray[np.float64]
    undefined: float | None = None

    @property
    def hausdorff95(self) -> float:
        """The larger of the two directed 95th percentile distances in mm; inf or nan where `undefined` says so."""
        if self.undefined is not None:
            return self.undefined
        return max(float(np.percentile(distances, 95)) for distances in (self.there, self.back))

    @property
    def average(self) -> float:
        """The mean over the voxels of both surfaces in mm (ASD, symmetric); inf or nan where `undefined` says so."""
        if self.undefined is not None:
            return self.undefined
        return float(self.there.sum() + self.back.sum()) / (self.there.size + self.back.size)

    def normalised_dice(self, tolerance: float) -> float:
        """The fraction of both surfaces that lies within `tolerance` mm of the other one (NSD).

        Args:
            tolerance: mm, not negative.

        Returns:
            0 to 1; 0 where one structure is empty, nan where both are.

        Raises:
            ValueError: The tolerance is negative or not finite.
        """
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be finite and not negative in mm, got {tolerance}")
        if self.undefined is not None:
            return math.nan if math.isnan(self.undefined) else 0.0
        near = sum(int(np.count_nonzero(distances <= tolerance)) for distances in (self.there, self.back))
        return near / (self.there.size + self.back.size)


def dice(mask: Mask, reference: Mask) -> float:
    """Twice the overlap over the sum of both sizes, 0 to 1; nan where both are empty.

    Args:
        mask: The structure, any shape.
        reference: The same structure in the reference, same shape.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(mask, reference)
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(reference))
    if total == 0:
        return math.nan
    return 2 * int(np.count_nonzero(mask & reference)) / total


def volume_error(mask: Mask, reference: Mask) -> float:
    """Size relative to the reference, minus one: 0.1 is ten percent too large; nan where the reference is empty."""
    _require_same_shape(mask, reference)
    expected = int(np.count_nonzero(reference))
    return int(np.count_nonzero(mask)) / expected - 1 if expected else math.nan


def surface_distances(mask: Mask, reference: Mask, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Distances between the surfaces of a structure and of its reference, both ways.

    Args:
        mask: The structure, any shape.
        reference: The same structure in the reference, same shape.
        spacing: mm per voxel along each array axis.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(mask, reference)
    none = np.empty(0)
    if not (mask.any() and reference.any()):
        return SurfaceDistances(none, none, math.inf if mask.any() or reference.any() else math.nan)
    box = ndimage.find_objects((mask | reference).view(np.uint8))[0]  # distances outside the box are never asked for
    ours, theirs = (_surface(part[box]) for part in (mask, reference))
    return SurfaceDistances(_distances(ours, theirs, spacing), _distances(theirs, ours, spacing))


def psnr(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """The peak signal-to-noise ratio in dB, 20 log10(data range / root mean square error); inf for equal images.

    Args:
        image: The image, any shape, real.
        reference: What it should be, same shape.
        data_range: Largest minus smallest possible value, positive.

    Raises:
        ValueError: The shapes differ, the images are empty, or the range is not positive.
    """
    error = nrmse(image, reference, data_range)
    return -20 * math.log10(error) if error > 0 else math.inf


def nrmse(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """The root mean square error as a fraction of the data range; arguments and errors as for `psnr`."""
    _require_images(image, reference, data_range)
    ours, theirs, squares = image.ravel(), reference.ravel(), 0.0
    for start in range(0, ours.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        squares += float(np.square(np.subtract(ours[chunk], theirs[chunk], dtype=np.float64)).sum())
    return math.sqrt(squares / image.size) / data_range


def ssim(image: np.ndarray, reference: np.ndarray, data_range: float, *, inside: Mask | None = None) -> float:
    """The structural similarity (Wang et al. 2004, equation 13), averaged over the voxels with a full window.

    Along an axis that is shorter than the window the image is mirrored at its ends, so that one slice gets the
    two-dimensional measure.

    Args:
        image: The image, (X, Y, Z), real.
        reference: What it should be, same shape.
        data_range: Largest minus smallest possible value, positive.
        inside: Voxels to average over, same shape; all by default.

    Returns:
        -1 to 1; nan where no voxel is left to average over.

    Raises:
        ValueError: The shapes differ, the images are empty, or the range is not positive.
    """
    _require_images(image, reference, data_range)
    edges = [_RADIUS if size > 2 * _RADIUS else 0 for size in image.shape]
    core = tuple(slice(edge, size - edge) for edge, size in zip(edges, image.shape, strict=True))
    step = _SLAB if edges[0] else image.shape[0]
    total, count = 0.0, 0
    for start in range(edges[0], image.shape[0] - edges[0], step):
        stop = min(start + step, image.shape[0] - edges[0])
        block = slice(start - edges[0], stop + edges[0])
        values = _ssim_map(image[block], reference[block], data_range)[edges[0] : stop - start + edges[0], *core[1:]]
        chosen = values if inside is None else values[inside[start:stop, *core[1:]]]
        total, count = total + float(chosen.sum()), count + chosen.size
    return total / count if count else math.nan


def edge_preservation(image: np.ndarray, reference: np.ndarray, *, inside: Mask | None = None) -> float:
    """How well edges survive: the correlation of gradient magnitudes, after a Gaussian of one voxel.

    Blurred edges, edges of left-over noise and invented ones all lower it.

    Args:
        image: The image, any number of axes, real.
        reference: What it should be, same shape.
        inside: Voxels that count, same shape; all by default.

    Returns:
        -1 to 1, 1 for equal images up to brightness and contrast; nan where one of them has no edge.

    Raises:
        ValueError: The shapes differ or the images are empty.
    """
    ours, theirs = _slopes(image, reference)
    if inside is not None:
        ours, theirs = ours[inside], theirs[inside]
    x, y = ours - ours.mean(dtype=np.float64), theirs - theirs.mean(dtype=np.float64)
    norm = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else math.nan


def flat_bias(image: np.ndarray, reference: np.ndarray, data_range: float, *, inside: Mask | None = None) -> float:
    """The mean error where the reference is flat, as a fraction of the data range.

    Flat is the fifth of the voxels above the darkest value with the least gradient: homogeneous tissue, where a
    restoration that shifts grey values does so unseen.

    Args:
        image: The image, any number of axes, real.
        reference: What it should be, same shape.
        data_range: Largest minus smallest possible value, positive.
        inside: Voxels that count, same shape; all by default.

    Returns:
        Positive where the image is too bright; nan where no voxel lies above the darkest value.

    Raises:
        ValueError: The shapes differ, the images are empty, or the range is not positive.
    """
    _require_images(image, reference, data_range)
    counted = reference > reference.min() if inside is None else inside & (reference > reference.min())
    if not counted.any():
        return math.nan
    slope = _slopes(reference, reference)[1][counted]
    flat = slope <= np.quantile(slope, _FLAT_SHARE)
    difference = np.subtract(image[counted][flat], reference[counted][flat], dtype=np.float64)
    return float(difference.mean()) / data_range


def _slopes(image: np.ndarray, reference: np.ndarray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gradient magnitudes of both images."""
    _require_images(image, reference, 1.0)
    ours, theirs = (ndimage.gaussian_gradient_magnitude(x.astype(np.float32), 1.0) for x in (image, reference))
    return np.asarray(ours, np.float32), np.asarray(theirs, np.float32)


def _ssim_map(image: np.ndarray, reference: np.ndarray, data_range: float) -> NDArray[np.float64]:
    """Equation 13 at every voxel; the outermost ones, whose window reaches beyond the block, see it mirrored."""

    def window(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, _SIGMA, radius=_RADIUS))

    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = window(x), window(y)
    variances = window(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = window(x * y) - mean_x * mean_y
    c1, c2 = (_C1 * data_range) ** 2, (_C2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _surface(mask: Mask) -> Mask:
    return mask & np.logical_not(ndimage.binary_erosion(mask))


def _distances(start: Mask, goal: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """mm from each voxel of `start` to the nearest voxel of `goal`."""
    field = ndimage.distance_transform_edt(~goal, sampling=spacing)
    return np.asarray(field)[start]


def _require_same_shape(mask: np.ndarray, reference: np.ndarray) -> None:
    if mask.shape != reference.shape:
        raise ValueError(f"mask and reference must share one shape, got {mask.shape} and {reference.shape}")


def _require_images(image: np.ndarray, reference: np.ndarray, data_range: float) -> None:
    _require_same_shape(image, reference)
    if image.size == 0:
        raise ValueError(f"images must hold voxels, got shape {image.shape}")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data range must be finite and positive, got {data_range}")


def eight_bit(image: np.ndarray) -> NDArray[np.uint8]:
    """Grey levels 0 to 255 of an image from 0 to 1; what lies outside is cut off, halves go to the even level."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def luma(levels: np.ndarray) -> NDArray[np.float64]:
    """BT.601 luma, 16 to 235, of grey levels 0 to 255.

    Differences shrink to 219/255, which adds 1.322 dB to a PSNR with a data range of 255: published figures that were
    taken on luma can only be compared with figures taken on it.
    """
    return 16 + levels.astype(np.float64) * (219 / 255)
