"""config.yaml as flat options."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat_options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all options in a nested config; lists are values."""
    if not isinstance(config, Mapping):
        yield prefix, config
        return
    for key, value in config.items():
        yield from flat_options(value, f"{prefix}.{key}" if prefix else str(key))
