"""`python bound.py PARENT COMMAND...`: run a command that ends when its parent dies; imports nothing of ours.

A listener that is killed outright cannot stop its worker; left alone, that would use the machine for a result nobody
takes. Linux only; elsewhere the worker finishes in vain.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent and become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the line above
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
