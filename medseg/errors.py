"""What goes wrong on the user's side, each with the exit code that the command line documents."""


class MedsegError(Exception):
    """The request cannot be met; the message is one line: what, expected, got, way out."""

    exit_code = 1


class UsageError(MedsegError):
    """The request itself is at fault: unknown name, wrong option, output already there."""

    exit_code = 2


class InputRefused(MedsegError):
    """The image is damaged, of the wrong kind, or outside what the model was made for."""

    exit_code = 3


class ModelMissing(MedsegError):
    """A model or its weights are absent, or their checksum does not match."""

    exit_code = 5


class Cancelled(MedsegError):
    """The user stopped the run; nothing was written."""

    exit_code = 130
