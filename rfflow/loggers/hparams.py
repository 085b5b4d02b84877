"""What TensorBoard's HParams table shows: which settings are its columns, and the records it reads them from.

TensorBoard keeps the first record of a kind that it sees in a directory and ignores later ones. Hence the shape here: a
run's record is written once and holds every setting of the run, while the experiment's record only says which of
them are columns, and can be written anew in another directory when a clone brings a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from rfflow.runs.run import Run, RunState
from rfflow.tracking.labels import override_key

Value = bool | float | str

STATES = {state: float(code) for code, state in enumerate(RunState)}
"""TensorBoard takes a setting for good and of metrics nothing but numbers, so a state that changes is one of these."""
_NAMES = {"state": "state: " + ", ".join(f"{code:.0f} {state.value}" for state, code in STATES.items() if code < 5)}
"""What stands above a column, where the tag says too little."""
_MISSING = "none"


def settings(run: Run) -> dict[str, Value]:
    """Return every setting of a run by its dotted name, its overrides that choose a config group, and its parent."""
    found: dict[str, Value] = {}
    _flatten(run.spec.config, "", found)
    for part in run.overrides:
        _, sign, text = part.partition("=")
        if sign:
            found.setdefault(override_key(part), text)
    found["parent"] = _MISSING if run.parent is None else str(run.parent)
    return found


def columns(runs: Sequence[Run]) -> list[str]:
    """Return the settings worth a column: those overridden, then whatever else differs between the runs.

    A setting that only repeats an overridden one (``trainer.args.learning_rate: ${lr}``) is left out, and so are the
    paths of the runs' own directories.
    """
    tables = [settings(run) for run in runs]
    overridden = dict.fromkeys(override_key(part) for run in runs for part in run.overrides)
    chosen = [key for key in overridden if any(key in table for table in tables)]
    shown = {_column(tables, key) for key in chosen}
    roots = [str(run.paths.root) for run in runs]
    for key in dict.fromkeys(key for table in tables for key in table):
        values = _column(tables, key)
        if key in overridden or len(set(values)) < 2 or values in shown:
            continue
        if all(root in str(table.get(key)) for root, table in zip(roots, tables, strict=True)):
            continue
        chosen.append(key)
    return chosen


def experiment_record(runs: Sequence[Run], metrics: Iterable[str]) -> Summary:
    """Return the table's head: the settings and the metrics (by their tags) that are its columns."""
    tables = [settings(run) for run in runs]
    infos = [_info(key, [table.get(key, _MISSING) for table in tables]) for key in columns(runs)]
    tags = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=_NAMES.get(tag, "")) for tag in metrics]
    return _summary(metadata.EXPERIMENT_TAG, experiment=api_pb2.Experiment(hparam_infos=infos, metric_infos=tags))


def start_record(run: Run, seconds: float, runs: Sequence[Run] = ()) -> Summary:
    """Return a run's row with all its settings.

    Args:
        run: whose row it is.
        seconds: when it began, since the epoch.
        runs: the others; a column that only they have gets a value here, too, because the parallel coordinates leave
            a run out that lacks one.
    """
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=seconds)
    for key, value in (dict.fromkeys(columns(runs), _MISSING) | settings(run)).items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def end_record(run: Run, seconds: float) -> Summary:
    """Return how a run ended."""
    status = api_pb2.STATUS_FAILURE if run.state is RunState.FAILED else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=seconds)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _flatten(node: Any, name: str, found: dict[str, Value]) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            _flatten(value, f"{name}.{key}" if name else str(key), found)
    elif isinstance(node, bool | int | float | str):
        found[name] = node
    elif isinstance(node, Sequence):
        found[name] = f"[{','.join(str(value) for value in node)}]"
    else:
        found[name] = "null" if node is None else str(node)


def _column(tables: Sequence[Mapping[str, Value]], key: str) -> tuple[Value | None, ...]:
    return tuple(table.get(key) for table in tables)


def _info(key: str, values: Sequence[Value]) -> api_pb2.HParamInfo:
    """Describe a column; text and yes-or-no columns list their values, which TensorBoard offers as a filter."""
    if all(isinstance(value, bool) for value in values):
        kind = api_pb2.DATA_TYPE_BOOL
    elif any(isinstance(value, bool | str) for value in values):
        kind = api_pb2.DATA_TYPE_STRING
    else:
        return api_pb2.HParamInfo(name=key, type=api_pb2.DATA_TYPE_FLOAT64)
    info = api_pb2.HParamInfo(name=key, type=kind)
    info.domain_discrete.extend(sorted(set(values), key=str))
    return info


def _summary(tag: str, **record: Any) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(**record)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))])
