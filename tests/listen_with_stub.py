"""`listen_with_stub.py RULES.json STATE`: a listener in a process of its own, to be killed; its worker is the stub."""

import json
import logging
import sys
import threading
from pathlib import Path

from medseg_pipelines.pacs.address import Access
from medseg_pipelines.pacs.listener import Listener
from medseg_pipelines.pacs.rules import Listening

STUB = (sys.executable, str(Path(__file__).with_name("stub_worker.py")))


def main() -> None:
    """Listen until killed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rules = Listening.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    listener = Listener(rules, Path(sys.argv[2]), Access(), STUB, look_every=0.05)
    listener.run(threading.Event(), started=lambda port: print("listening", flush=True))


if __name__ == "__main__":
    main()
