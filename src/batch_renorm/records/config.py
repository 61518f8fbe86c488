"""config.yaml as flat options, and which of them say what is trained."""

from collections.abc import Iterator, Mapping
from typing import Any

NEUTRAL = frozenset({
    *("folder", "fresh", "debug", "dataset", "dataset_of_scale", "trainer", "logger", "data.root"),
    *("evaluation.every", "evaluation.batch_size", "evaluation.minibatches_every"),
    *("size.evaluate_every", "size.evaluation_batch", "size.minibatches_every"),
})  # fmt: skip
"""Sections and options that change neither what is trained nor what a metric means: where a run, its images and its
files are, the machine, and how often it evaluates. A run resumes if only these differ, and belongs to the same row."""


def flat_options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all options in a nested config; lists are values."""
    if not isinstance(config, Mapping):
        yield prefix, config
        return
    for key, value in config.items():
        yield from flat_options(value, f"{prefix}.{key}" if prefix else str(key))


def trained_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values of the options that say what is trained."""
    return {name: value for name, value in flat_options(config) if not {name, name.partition(".")[0]} & NEUTRAL}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the options in which two configs differ, if the difference makes another run."""
    olds, news, missing = trained_options(old), trained_options(new), object()
    return sorted(name for name in olds | news if olds.get(name, missing) != news.get(name, missing))
