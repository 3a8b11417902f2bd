"""The main job on a real volume, as `make demo` runs it: the MNI152 T1 template that nilearn ships."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def template() -> Path:
    """The template's file, found without importing nilearn."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise SystemExit("demo needs the nilearn package for its volume; run: pip install 'medseg[demo]'")
    return Path(spec.origin).parent / TEMPLATE


def main() -> None:
    """Segment the template into the folder named on the command line and say where picture and volumes are."""
    out = Path(sys.argv[1])
    command = [str(Path(sys.executable).with_name("medseg")), "infer", str(template()), "-o", str(out), "--overwrite"]
    subprocess.run(command, check=True)
    sys.stdout.write(f"\npicture: {out / 'preview.png'}\nvolumes: {out / 'statistics.csv'}\n")


if __name__ == "__main__":
    main()
