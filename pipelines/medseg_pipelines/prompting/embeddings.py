"""Embeddings of slices, kept by the content of the slice: encoding takes seconds, decoding a prompt milliseconds."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from medseg.weights import save_weights

_LIMIT = 1 << 30  # bytes; 256 slices of a SAM


class Embeddings:
    """The last embeddings, as many as fit.

    Args:
        folder: Where they are kept beyond this process too; nowhere if not given. They show the image to who has the
            weights: a folder needs the same protection as the images.
        limit: Bytes in memory.
    """

    def __init__(self, folder: Path | None = None, *, limit: int = _LIMIT) -> None:
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._folder, self._limit, self._bytes = folder, limit, 0
        self.made = 0  # how many were encoded; the others were found
        self.found = 0

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The embedding of a key, made if it is not there."""
        if key in self._kept:
            self._kept.move_to_end(key)
            self.found += 1
            return self._kept[key]
        embedding = self._load(key)
        if embedding is None:
            embedding = make()
            self.made += 1
            self._save(key, embedding)
        else:
            self.found += 1
        self._keep(key, embedding)
        return embedding

    def clear(self) -> None:
        """Forget what is in memory."""
        self._kept.clear()
        self._bytes = 0

    def _keep(self, key: str, embedding: Tensor) -> None:
        self._kept[key] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes

    def _load(self, key: str) -> Tensor | None:
        path = None if self._folder is None else self._folder / f"{key}.safetensors"
        if path is None or not path.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)["embedding"]
        except (SafetensorError, KeyError):  # a torn file: it is made anew
            return None

    def _save(self, key: str, embedding: Tensor) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_weights({"embedding": embedding}, self._folder / f"{key}.safetensors")


def key_of(slice_: np.ndarray, *about: object) -> str:
    """The sha256 of a slice and of all that decides about its embedding beside it."""
    digest = hashlib.sha256(repr((slice_.dtype.str, slice_.shape, *about)).encode())
    digest.update(np.ascontiguousarray(slice_).tobytes())
    return digest.hexdigest()
