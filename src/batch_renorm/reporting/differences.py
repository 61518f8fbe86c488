"""The config identifies a run: runs that were trained differently get separate rows, named by their differences.

A run is compared with `expected`, the config that its scale and experiment compose to today. If that is unknown, for an
experiment whose file is gone or an option from another version, it is compared with most runs of the
same experiment. Options of the machine do not count: they cannot change what is trained.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batch_renorm.records.config import trained_options
from batch_renorm.records.naming import as_name
from batch_renorm.reporting.recorded import RecordedRun

Expected = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
"""config -> dotted option -> its value if only the config's scale and experiment are chosen; None if they do not
compose."""

PLACES = frozenset({"seed", "scale", "experiment"})
"""Options that say which row and which seed a run is."""
FILES = ("data.root", "model.checkpoint")
"""Options that a scale leaves to the user: most runs decide which file is usual."""


def trained(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted option -> value, as text, for all options that change what is trained.

    A section that constructs a class has one option more: its own name, with the class.
    """
    options = {k: as_text(v) for k, v in trained_options(config).items() if k not in PLACES}
    classes = {k.removesuffix("._target_"): v.rpartition(".")[2] for k, v in options.items() if k.endswith("._target_")}
    return classes | {k: v for k, v in options.items() if not k.endswith("._target_")}


def data_set(config: Mapping[str, Any]) -> str | None:
    """The name of the config's data set, if it is not its scale's."""
    name, of_scale = config.get("dataset"), config.get("dataset_of_scale")
    if not isinstance(name, str) or not isinstance(of_scale, str) or name == of_scale:
        return None
    return as_name(name)


def apart(runs: Sequence[RecordedRun], expected: Expected | None = None) -> list[RecordedRun]:
    """The runs, with `experiment` set to their row and `scale` set to their comparison.

    A run on another data set than its scale's belongs to the comparison `<scale>-<data set>`. A run that differs from
    its experiment belongs to the row "<experiment>, <option>=<value>".
    """
    data = [data_set(run.config) for run in runs]
    runs = [
        replace(run, data=name, scale=f"{run.scale}-{name}" if name else run.scale, base_experiment=run.experiment)
        for run, name in zip(runs, data, strict=True)
    ]
    options = [trained(run.config) for run in runs]
    peers: dict[tuple[str, str], list[dict[str, str]]] = {}
    for run, own in zip(runs, options, strict=True):
        peers.setdefault((run.scale, run.experiment), []).append(own)
    rows = []
    for run, own in zip(runs, options, strict=True):
        reference = trained((expected(run.config) if expected and run.config else None) or {})
        left_open = ("data", *FILES) if run.data else FILES
        reference = {k: v for k, v in reference.items() if not {k, k.split(".")[0]} & {*left_open}}
        usual = {
            option: Counter(peer.get(option) for peer in peers[run.scale, run.experiment]).most_common(1)[0][0]
            for option in own.keys() - reference.keys()
        }
        differs = _differences(own, usual | reference)
        rows.append(replace(run, experiment=row_name(run.experiment, differs), differs=differs))
    return rows


def _differences(own: Mapping[str, str], reference: Mapping[str, str | None]) -> dict[str, str]:
    """Option -> value. Of a section with another class the class counts, or its option `name`, and no other option."""
    others = {option for option in own if "." not in option and own[option] != reference.get(option)}
    same_class = {k: v for k, v in own.items() if k.split(".")[0] not in others}
    return {option: own.get(f"{option}.name", own[option]) for option in sorted(others)} | {
        option: value for option, value in same_class.items() if value != reference.get(option)
    }


def row_name(experiment: str, differs: Mapping[str, str]) -> str:
    return ", ".join((experiment, *(f"{option}={value}" for option, value in differs.items())))


def as_text(value: Any) -> str:
    """The same text for every spelling of a value: 5 and 5.0, or 1e-3, which YAML 1.1 reads as "1e-3"."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, default=str, ensure_ascii=False).replace('"', "").replace("Infinity", "inf")
