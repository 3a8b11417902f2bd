"""How well separate things were found: matches at an overlap, panoptic quality, aggregated Jaccard index.

A found thing matches a true one where their intersection over union (IoU) is above a half; above a half no thing can
match two. N found things, M true ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """Of one picture; all but the counts run from 0 to 1, and are 1 where there is nothing and nothing was found.

    Attributes:
        dice: Of all things together against the background.
        f1: 2 TP / (2 TP + FP + FN) of matches.
        panoptic_quality: Sum of the IoU of matches over TP + FP / 2 + FN / 2 (Kirillov et al. 2019).
        aji: Aggregated Jaccard index (Kumar et al. 2017).
        found: N.
        true: M.
    """

    dice: float
    f1: float
    panoptic_quality: float
    aji: float
    found: int
    true: int


def score_instances(found: NDArray[np.integer], true: NDArray[np.integer]) -> InstanceScores:
    """Compare two pictures of numbered things, (H, W) each, 0 for the background.

    Raises:
        ValueError: They differ in size.
    """
    if found.shape != true.shape:
        raise ValueError(f"found and true must share one size, got {found.shape} and {true.shape}")
    both, sizes_found, sizes_true = _table(found, true)
    n, m = len(sizes_found), len(sizes_true)
    if not n + m:
        return InstanceScores(dice=1.0, f1=1.0, panoptic_quality=1.0, aji=1.0, found=0, true=0)
    share = both.data / (sizes_found[both.row] + sizes_true[both.col] - both.data)
    matches = share > 0.5
    tp = int(matches.sum())
    return InstanceScores(
        dice=2 * float(both.data.sum()) / float(sizes_found.sum() + sizes_true.sum()),
        f1=2 * tp / (n + m),
        panoptic_quality=2 * float(share[matches].sum()) / (n + m),
        aji=_aji(both, share, sizes_found, sizes_true),
        found=n,
        true=m,
    )


def _table(
    found: NDArray[np.integer], true: NDArray[np.integer]
) -> tuple[sparse.coo_matrix, NDArray[np.int64], NDArray[np.int64]]:
    """Shared pixels of every pair that shares any, (N, M), and the pixels of each thing."""
    names_found, a = np.unique(found, return_inverse=True)
    names_true, b = np.unique(true, return_inverse=True)
    a, b = a.ravel(), b.ravel()
    ones = np.ones(a.size, np.int64)
    table = sparse.coo_matrix((ones, (a, b)), (len(names_found), len(names_true))).tocsr()
    keep_a, keep_b = np.flatnonzero(names_found), np.flatnonzero(names_true)
    both = sparse.coo_matrix(table[keep_a][:, keep_b])
    return both, np.bincount(a)[keep_a], np.bincount(b)[keep_b]


def _aji(
    both: sparse.coo_matrix, share: NDArray[np.float64], found: NDArray[np.int64], true: NDArray[np.int64]
) -> float:
    """Each true thing takes the found one with the largest IoU; what no true one took adds to the union."""
    best = np.full(len(true), -1)
    order = np.argsort(share, kind="stable")
    best[both.col[order]] = order  # the largest comes last
    taken = best[best >= 0]
    shared = float(both.data[taken].sum())
    union = float((found[both.row[taken]] + true[both.col[taken]]).sum()) - shared
    union += float(true[best < 0].sum())
    unused = np.ones(len(found), bool)
    unused[both.row[taken]] = False
    return shared / (union + float(found[unused].sum()))
