"""Rows to learn baselines from, read from files: CSV, Parquet, and the input example of an MLflow model.

Read once, when a config is taken up; see `streamproc.baseline` for what is made of them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from streamproc.baseline import Table
from streamproc.config import Config, ReferenceRule
from streamproc.errors import ConfigError, ConfigIssue

#: Rows read at most: a baseline of these is as good as one of more.
MAX_ROWS: Final = 100_000


class _Unusable(ValueError):
    """A file there is nothing to learn from; says why."""


def read(config: Config, *, path: Path | None) -> dict[str, Table]:
    """Read what a config's references name, by `ReferenceRule.table`; paths are beside the config's own, `path`.

    Raise `ConfigError` with every file that cannot be used.
    """
    beside = Path() if path is None else path.parent
    tables: dict[str, Table] = {}
    problems: list[ConfigIssue] = []
    for i, block in enumerate(config.models):
        said = block.reference
        key = None if said is None else said.table()
        if said is None or key is None or key in tables:
            continue
        source = said.file or said.mlflow or ""
        try:
            tables[key] = _table(said, beside)
        except (_Unusable, OSError, csv.Error, UnicodeDecodeError, orjson.JSONDecodeError, yaml.YAMLError) as e:
            why = getattr(e, "strerror", None) or str(e)
            field = f"models[{i}].reference.{'file' if said.file else 'mlflow'}"
            name = "<config>" if path is None else str(path)
            problems.append(ConfigIssue(name, 0, 0, "E036", field, f"`{source}` cannot be used: {why}"))
    if problems:
        raise ConfigError(problems)
    return tables


def _table(said: ReferenceRule, beside: Path) -> Table:
    if said.mlflow is not None:
        rows = list(islice(_example(said.mlflow, beside), MAX_ROWS))
        name = said.mlflow
    else:
        path = beside / str(said.file)
        rows = list(islice(_parquet(path) if path.suffix.lower() == ".parquet" else _csv(path), MAX_ROWS))
        name = path.name
    if not rows:
        raise _Unusable("it has no rows")
    columns = rows[0].keys()
    for what in (said.prediction, said.label, *(said.features or ())):
        if what is not None and what not in columns:
            raise _Unusable(f"it has no column `{what}`; it has {', '.join(map(str, columns))}")
    apart = {said.prediction, said.label}
    features = said.features or [c for c in columns if c not in apart]
    return Table(
        name,
        [{c: row.get(c) for c in features} for row in rows],
        [_number(row.get(said.prediction)) if said.prediction else None for row in rows],
        [_text(row.get(said.label)) if said.label else None for row in rows],
    )


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a CSV's rows; a column is of numbers where every value that is given is one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = list(islice(csv.DictReader(file), MAX_ROWS))
    if found and None in found[0]:
        raise _Unusable("a row has more values than the first line has names")
    for name in found[0] if found else ():
        numbers = [_number(row[name]) for row in found]
        given = [row[name] not in ("", None) for row in found]
        if all(n is not None for n, g in zip(numbers, given, strict=True) if g):
            for row, number in zip(found, numbers, strict=True):
                row[name] = number
        else:
            for row, g in zip(found, given, strict=True):
                row[name] = row[name] if g else None
    yield from found


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise _Unusable("Parquet is read by pyarrow; install `streamproc[parquet]`") from None
    if not path.exists():
        raise _Unusable("No such file or directory")
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=10_000):
                yield from batch.to_pylist()
    except ArrowInvalid as e:
        raise _Unusable(str(e)) from None


def _example(uri: str, beside: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of an MLflow model's input example, as `mlflow.*.log_model(input_example=…)` saved it."""
    directory = beside / uri
    if uri.startswith(("models:/", "runs:/")):
        try:
            from mlflow.artifacts import download_artifacts
        except ImportError:
            raise _Unusable("a registry is asked by mlflow; install `streamproc[mlflow]`") from None
        try:
            directory = Path(download_artifacts(artifact_uri=uri))
        except Exception as e:  # whatever its stores raise
            raise _Unusable(str(e)) from None
    saved = yaml.safe_load((directory / "MLmodel").read_text(encoding="utf-8"))
    info = saved.get("saved_input_example_info") if isinstance(saved, dict) else None
    if not isinstance(info, dict) or "artifact_path" not in info:
        raise _Unusable("the model was logged without an input example")
    tree = orjson.loads((directory / str(info["artifact_path"])).read_bytes())
    return _records(tree)


def _records(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield rows from JSON: records, pandas' split, or lists of columns."""
    if isinstance(tree, dict) and isinstance(tree.get("columns"), list) and isinstance(tree.get("data"), list):
        return (dict(zip(map(str, tree["columns"]), row, strict=False)) for row in tree["data"])
    if isinstance(tree, list) and tree and all(isinstance(row, dict) for row in tree):
        return iter(tree)
    if isinstance(tree, dict) and tree and all(isinstance(column, list) for column in tree.values()):
        return _across(tree)
    if isinstance(tree, dict) and tree and not any(isinstance(v, dict | list) for v in tree.values()):
        return iter([tree])
    raise _Unusable("its input example is no table")


def _across(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    rows: Iterable[tuple[Any, ...]] = zip(*columns.values(), strict=False)
    return (dict(zip(columns, row, strict=True)) for row in rows)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def _text(value: Any) -> str | None:
    """Return a class as an event's label would be called: 1.0 of a CSV is 1."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
