"""Errors that are about the run, not about the program."""


class NotFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""
