"""Check vector files of the published networks: `python tests/golden.py FOLDER_OR_FILE...`

Each file holds inputs, weights and outputs of one module. What module that is follows from the file's own metadata and
key names, never from its name: the first kind of `golden_kinds` that recognises the file builds the module and computes
what the file holds. Prints one line per file, its worst error over its tolerance; exits 1 if a file fails or cannot be
interpreted.

With `--fused` the Triton kernels run, on a GPU or else in Triton's interpreter (only small files are worth that).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import golden_kinds
import golden_kinds_db_sam
import golden_kinds_disgan
import golden_kinds_fsg_net
import golden_kinds_her_seg
import golden_kinds_rat
import golden_kinds_sam2
from golden_vectors import KINDS, UninterpretableError, compare, read
from medseg_kernels.dispatch import INTERPRETED

# Modules that register their kinds by being imported.
SYSTEMS = (
    golden_kinds,
    golden_kinds_db_sam,
    golden_kinds_disgan,
    golden_kinds_fsg_net,
    golden_kinds_her_seg,
    golden_kinds_rat,
    golden_kinds_sam2,
)


def check(path: Path, device: str = "cpu") -> tuple[float, str]:
    """Worst error over tolerance in a file and where it lies.

    Raises:
        UninterpretableError: No kind recognises the file, or it does not fit the kind that does.
    """
    vector = read(path, device)
    for system, recognise, compute in KINDS:
        if system == vector.meta.get("system") and recognise(vector):
            try:
                found = compute(vector)
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise UninterpretableError(
                    f"{compute.__name__}: {type(error).__name__}: {error}".splitlines()[0]
                ) from error
            return compare(vector, found)
    raise UninterpretableError(f"no kind of system {vector.meta.get('system')!r} fits case {vector.meta.get('case')!r}")


def files(paths: list[Path]) -> Iterator[Path]:
    """The files themselves, and all vector files below the folders."""
    for path in paths:
        yield from sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="vector files, or folders of them")
    parser.add_argument("--fused", action="store_true", help="run the Triton kernels, interpreted if there is no GPU")
    options = parser.parse_args(arguments)
    fused_device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.fused and fused_device == "cpu" and not INTERPRETED:
        # Triton decides about its interpreter when it is imported, so only a new process can have it.
        again = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        return subprocess.run(again, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode
    bad = total = 0
    for path in files(options.paths):
        total += 1
        try:
            worst, where = check(path, fused_device if options.fused else "cpu")
        except UninterpretableError as error:
            bad += 1
            print(f"????  {path}: cannot be interpreted: {error}")
            continue
        bad += not worst <= 1
        print(f"{'ok  ' if worst <= 1 else 'FAIL'}  {path}: {worst:.3f} of the tolerance at {where}")
    print(f"{total - bad} of {total} files are met")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())
