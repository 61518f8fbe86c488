"""Errors of training itself."""


class NotFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""
