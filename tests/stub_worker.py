"""Stands for `medseg infer` where a test is about everything around it; imports next to nothing, to be quick.

`stub_worker.py infer IMAGES -m MODEL -o OUT ...`; the name of the model says what happens. The result is the first
image under UIDs of its own, with the number of images in its comment.
"""

import json
import random
import re
import sys
import time
from pathlib import Path

COMMENT = "images: 000"  # what the comment of an image says before


def main() -> int:
    """Write a result folder with one DICOM file, or fail in the way asked for."""
    _, images, _, model, _, out, *_ = sys.argv[1:]
    sources = sorted(Path(images).glob("*.dcm"))
    if model == "refuses":
        sys.stderr.write("error: the image is not what the model was made for\n")
        return 3
    if model == "breaks":
        sys.stderr.write("error: KeyError: Canary^Some (this is a bug)\n")
        return 1
    time.sleep(600 if model == "sleeps" else 0.1)
    content = sources[0].read_bytes().replace(COMMENT.encode(), f"images: {len(sources):03d}".encode())
    (series,) = re.findall(rb"(?s)\x20\x00\x0e\x00UI..([0-9.]+)", content)
    (instance,) = re.findall(rb"(?s)\x08\x00\x18\x00UI..([0-9.]+)", content)
    for uid in (instance, series):  # the longer one first: it holds the other
        content = content.replace(uid, b"1.9." + b"".join(b"%d" % random.randint(1, 9) for _ in uid[4:]))
    partial = Path(f"{out}.partial")
    partial.mkdir()
    (partial / "seg.dcm").write_bytes(content)
    (partial / "manifest.json").write_text(json.dumps({"model": {"trained": model != "untrained"}}))
    partial.rename(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
