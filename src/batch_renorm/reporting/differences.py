"""The config identifies a run: runs that were trained differently get separate rows, named by their differences.

A run is compared with `expected`, the config that its scale and experiment compose to today. If that is unknown, for an
experiment whose file is gone or an option from other versions, it is compared with most runs of the
same experiment. Options of the machine do not count: they cannot change what is trained.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batch_renorm.records.config import trained_options
from batch_renorm.records.naming import as_name, dataset_of
from batch_renorm.reporting.recorded import RecordedRun

Config = Mapping[str, Any]
Expected = Callable[[Config], Mapping[str, Any] | None]
"""config -> dotted option -> its value if only the config's scale and experiment are chosen; None if they do not
compose."""

PLACES = frozenset({"seed", "scale", "experiment"})
"""Options that say which row and which seed a run is."""
SHOWN = 3  # most differences in a row's name; the page's table of configs has all
STEPS = "size.steps"


def trained(run: RecordedRun) -> dict[str, str]:
    """Dotted option -> value, as text, for all options that change what is trained."""
    own = {k: _text(v) for k, v in trained_options(run.config).items() if k not in PLACES}
    if run.steps is not None and "steps" not in own:
        own.setdefault(STEPS, _text(run.steps))
    return own


def data_set(config: Config) -> str | None:
    """The data set's name: from the config, else from its folder, else from its class; None if unknown."""
    data, given = config.get("data"), config.get("dataset")
    if not isinstance(data, Mapping):
        return None
    if isinstance(given, str) and given:
        return as_name(given.lower())
    return dataset_of(data) if "_target_" in data else None


def apart(runs: Sequence[RecordedRun], expected: Expected | None = None) -> list[RecordedRun]:
    """The runs, with `experiment` set to their row and `scale` set to their comparison.

    A run on another data set than its scale's belongs to the comparison `<scale>-<data set>`. A run that differs from
    its experiment belongs to the row "<experiment>, <option>=<value>".
    """
    there = [(expected(run.config) if expected and run.config else None) for run in runs]
    own_data = _own_data(runs, there)
    runs = [
        replace(r, data=name, scale=f"{r.scale}-{name}" if name else r.scale)
        for r, name in zip(runs, own_data, strict=True)
    ]
    options = [trained(run) for run in runs]
    usual = _usual(runs, options)
    found: list[dict[str, str]] = []
    for run, own, composed in zip(runs, options, there, strict=True):
        reference = {k: _text(v) for k, v in (composed or {}).items() if not (run.data and k.startswith("data."))}
        differing = {}
        for option, value in own.items():
            least = reference.get(option, usual(run, option))
            if value != least:
                differing[option] = value
        found.append(dict(sorted(differing.items(), key=lambda d: d[0] not in ("steps", STEPS))))
    return [_renamed(run, own, found, runs) for run, own in zip(runs, found, strict=True)]


def _renamed(
    run: RecordedRun, own: dict[str, str], found: Sequence[dict[str, str]], runs: Sequence[RecordedRun]
) -> RecordedRun:
    if not own:
        return run
    texts = [_named(option, value) for option, value in own.items()]
    peers = [d for r, d in zip(runs, found, strict=True) if (r.scale, r.of) == (run.scale, run.of) and d != own]
    short = (*texts[:SHOWN], f"and {len(texts) - SHOWN} more") if len(texts) > SHOWN + 1 else tuple(texts)
    alike = any(list(d.items())[:SHOWN] == list(own.items())[:SHOWN] and len(d) == len(own) for d in peers)
    differs = tuple(texts) if alike else short
    return replace(run, experiment=", ".join((run.of, *differs)), differs=differs)


def _named(option: str, value: str) -> str:
    """ "ramp.rmax=5", and "model=TimmModel" for the class that a section constructs."""
    if option.endswith("._target_"):
        return f"{option.removesuffix('._target_')}={value.rpartition('.')[2]}"
    return f"{option}={value}"


def _own_data(runs: Sequence[RecordedRun], there: Sequence[Mapping[str, Any] | None]) -> list[str | None]:
    """The name of each run's data set if it is not its scale's; if no config composes, most runs decide."""
    names = [data_set(run.config) for run in runs]
    most: dict[str, Counter[str]] = defaultdict(Counter)
    for run, name in zip(runs, names, strict=True):
        if name:
            most[run.scale][name] += 1
    found = []
    for run, name, composed in zip(runs, names, there, strict=True):
        if composed is not None:
            data = {k.removeprefix("data."): v for k, v in composed.items() if k.startswith("data.")}
            usual = data_set({"data": data, "dataset": composed.get("dataset")})
        else:
            usual = "imagenet" if run.scale == "imagenet" else next(iter(dict(most[run.scale].most_common(1))), None)
        found.append(name if name and name != usual else None)
    return found


def _usual(runs: Sequence[RecordedRun], options: Sequence[dict[str, str]]) -> Callable[[RecordedRun, str], str | None]:
    """(run, option) -> the value in most runs of its experiment; None if most do not have the option.

    A run's length is the same for all experiments of a comparison. In a tie the first in the order of folders
    counts.
    """
    experiments: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    scales: dict[str, list[dict[str, str]]] = defaultdict(list)
    for run, own in zip(runs, options, strict=True):
        experiments[run.scale, run.of].append(own)
        scales[run.scale].append(own)

    def usual(run: RecordedRun, option: str) -> str | None:
        peers = scales[run.scale] if option in ("steps", STEPS) else experiments[run.scale, run.of]
        if option in ("steps", STEPS):
            peers = [own for own in peers if option in own]
        return Counter(own.get(option) for own in peers).most_common(1)[0][0]

    return usual


def _text(value: Any) -> str:
    """The same text for every spelling of a value: 5 and 5.0, or 1e-3, which YAML 1.1 reads as "1e-3"."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, default=str).replace('"', "")
