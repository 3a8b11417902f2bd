"""Stands for the worker of the web application where a test is about the queue; `do` says what comes."""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Answer tasks as asked until stdin ends."""
    held = b""
    for line in sys.stdin:
        task = json.loads(line)
        do = task["request"].get("do") or wish(Path(task["upload"]))
        say(stage="segmenting", done=1, total=4, seconds_left=3.0)
        if do == "sleep":
            time.sleep(600)
        if do == "grow":
            held = b"x" * (200 << 20)
            time.sleep(600)
        once = Path(task["upload"]) / ".died"
        if do == "die" or (do == "die once" and not once.exists()):
            once.parent.mkdir(exist_ok=True)
            once.touch()
            os._exit(9)
        if do == "refuse":
            say(end="refused", reason="image is not what the model was made for")
            continue
        write(Path(task["folder"]))
        if do == "die after the result":
            os._exit(9)
        say(end="done", reason="")
    sys.exit(len(held) and 1)


def wish(upload: Path) -> str:
    """What the content of an upload asks for, where a test cannot put it into the request."""
    content = b"".join(path.read_bytes() for path in upload.glob("image*"))
    return content.decode() if content in (b"sleep", b"refuse") else "finish"


def write(folder: Path) -> None:
    """A result that appears whole."""
    partial = folder / "partial"
    partial.mkdir()
    (partial / "manifest.json").write_text(json.dumps({"files": {}, "pid": os.getpid()}))
    partial.rename(folder / "result")


def say(**content: object) -> None:
    """One line to the server."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
