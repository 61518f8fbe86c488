"""The error for what a user can mend; every other exception is a bug or the machine's."""


class UserError(ValueError):
    """A file, a folder or an option is not what it should be: one line that names it and the cure.

    The commands print it as `error: ...` and end with status 2. torch makes a loader process's exception again from its
    whole traceback; only the last line is the message.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


class TransientReadError(OSError):
    """A file could not be read, and not when tried again: an error of the disk or the network, not the user's.

    The same command may succeed later. As with UserError, only the last line of a loader process's traceback is kept.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))
