"""Rows to learn baselines from, read from files: CSV, Parquet, and the input example of an MLflow model.

Read once, when a config is taken up; see `streamproc.baseline` for what is made of them.
"""

from __future__ import annotations

import base64
import csv
import datetime as dt
import errno
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from detectors.params import closest
from streamproc.baseline import Table, from_table
from streamproc.config import Config, ReferenceRule, place
from streamproc.errors import ConfigError, ConfigIssue
from streamproc.feature_values import flat

#: Rows read at most: a baseline of these is as good as one of more.
MAX_ROWS: Final = 100_000


class _Unusable(ValueError):
    """A file there is nothing to learn from; says why, and what to do."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


def read(config: Config, *, path: Path | None) -> dict[str, Table]:
    """Read what a config's references name, by `ReferenceRule.table`; paths are beside the config's own, `path`.

    Of each a baseline is built, so that what none can be learned from is found here. Raise `ConfigError` (E036) with
    every file that cannot be used, whatever is wrong with it.
    """
    beside = Path() if path is None else path.parent
    tables: dict[str, Table] = {}
    problems: list[ConfigIssue] = []
    for i, said, key in _named(config):
        if key in tables:
            continue
        source = said.file or said.mlflow or ""
        try:
            tables[key] = _table(said, beside)
            from_table(tables[key], max_features=config.defaults.max_features)
        except Exception as e:  # readers of files raise whatever they like; none of it may end a worker that runs
            tables.pop(key, None)
            field = f"models[{i}].reference.{'file' if said.file else 'mlflow'}"
            name = "<config>" if path is None else str(path)
            line, column = (0, 0) if path is None else place(path, field)
            text = f"`{source}` cannot be used: {_why(e)}; {_remedy(e, said)}"
            problems.append(ConfigIssue(name, line, column, "E036", field, text))
    if problems:
        raise ConfigError(problems)
    return tables


def stamps(config: Config, *, path: Path | None) -> dict[str, tuple[int, int] | None]:
    """Return when each file that a config's references name was changed (nanoseconds), and its size; None for none."""
    beside = Path() if path is None else path.parent
    found: dict[str, tuple[int, int] | None] = {}
    for _, said, _ in _named(config):
        file = beside / str(said.file) if said.file else beside / str(said.mlflow) / "MLmodel"
        try:
            status = file.stat()
            found[str(file)] = status.st_mtime_ns, status.st_size
        except OSError:
            found[str(file)] = None
    return found


def _named(config: Config) -> Iterator[tuple[int, ReferenceRule, str]]:
    for i, block in enumerate(config.models):
        key = None if block.reference is None else block.reference.table()
        if block.reference is not None and key is not None:
            yield i, block.reference, key


def _why(error: Exception) -> str:
    """Return in a line what is wrong."""
    said = getattr(error, "strerror", None) or str(error).strip()
    known = isinstance(error, _Unusable | OSError)
    return said.splitlines()[0] if known and said else f"{type(error).__name__}: {' '.join(said.split())}"


def _remedy(error: Exception, said: ReferenceRule) -> str:
    if isinstance(error, _Unusable) and error.remedy:
        return error.remedy
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "a path is beside the config's own file"
    if isinstance(error, PermissionError):
        return "let the worker's user read it"
    return "write it anew, " + ("as .parquet or .csv" if said.file else "by `log_model(..., input_example=...)`")


def _table(said: ReferenceRule, beside: Path) -> Table:
    if said.mlflow is not None:
        rows = list(islice(_example(said.mlflow, beside), MAX_ROWS))
        name = said.mlflow
    else:
        path = beside / str(said.file)
        found = _parquet(path, said) if path.suffix.lower() == ".parquet" else _csv(path)
        rows = list(islice(found, MAX_ROWS))
        name = path.name
    if not rows:
        raise _Unusable("it has no rows", "a baseline needs some hundreds")
    columns = rows[0].keys()
    _check_columns(said, columns)
    apart = {said.prediction, said.label}
    features = [flat({c: v for c, v in row.items() if c not in apart}) for row in rows]
    if said.features is not None:
        wanted = frozenset(said.features)
        chosen = {c: c in wanted or not wanted.isdisjoint(_above(c)) for row in features for c in row}
        features = [{c: v for c, v in row.items() if chosen[c]} for row in features]
    values = [_number(row.get(said.prediction)) if said.prediction else None for row in rows]
    labels = [_text(row.get(said.label)) if said.label else None for row in rows]
    for column, given, kind in ((said.prediction, values, "number"), (said.label, labels, "class")):
        if column is not None and all(x is None for x in given):
            raise _Unusable(f"its column `{column}` has no {kind} in any of {len(rows)} rows", "name another column")
    return Table(name, features, values, labels)


def _above(name: str) -> Iterator[str]:
    """Yield the paths that a nested column is under."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _check_columns(said: ReferenceRule, columns: Iterable[str]) -> None:
    known = list(map(str, columns))
    nested = [c for c in said.features or () if c.split(".")[0] in known]
    for what in (said.prediction, said.label, *(said.features or ())):
        if what is not None and what not in known and what not in nested:
            shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise _Unusable(f"it has no column `{what}`; it has {shown}", f"name one of them{closest(what, known)}")


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


def _parquet(path: Path, said: ReferenceRule) -> Iterator[dict[str, Any]]:
    """Yield a Parquet file's rows, of the columns that are asked for, as plain values."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise _Unusable("Parquet is read by pyarrow", "install `streamproc[parquet]`, or write .csv") from None
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
    with ParquetFile(path) as file:
        schema = file.schema_arrow
        _check_columns(said, schema.names)
        asked = [c for c in (said.prediction, said.label, *(said.features or ())) if c is not None]
        columns = None
        if said.features is not None:
            columns = list(dict.fromkeys(c if c in schema.names else c.split(".")[0] for c in asked))
        for batch in file.iter_batches(batch_size=10_000, columns=columns):
            named = dict(zip(batch.schema.names, batch.columns, strict=True))
            plain = {}
            for name, column in named.items():
                try:
                    plain[name] = _plain_column(column, pyarrow)
                except (pyarrow.ArrowException, ValueError, OverflowError, TypeError) as e:
                    why = f"its column `{name}` of {column.type} cannot be read: {str(e).splitlines()[0]}"
                    by_name = name in asked
                    remedy = "write it as a number or text" if by_name else "name the columns to read in `features`"
                    raise _Unusable(why, remedy) from None
            if plain:
                yield from _across(plain)
            else:
                yield from ({} for _ in range(batch.num_rows))


def _plain_column(column: Any, pyarrow: Any) -> list[Any]:
    """Return a column's values as JSON would have them: no more precise than a microsecond, dictionaries looked up."""
    wanted = _plain_type(column.type, pyarrow)
    if wanted != column.type:
        # Beyond a microsecond Python has no times: what is cut off distinguishes nothing here.
        column = column.cast(wanted, safe=False)
    return [_plain(value) for value in column.to_pylist()]


def _plain_type(kind: Any, pyarrow: Any) -> Any:
    """Return the type without dictionaries, extensions and nanoseconds, at whatever depth."""
    of = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain_type(kind.storage_type, pyarrow)
    if of.is_dictionary(kind):
        return _plain_type(kind.value_type, pyarrow)
    if of.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if of.is_time64(kind) and kind.unit == "ns":
        return pyarrow.time64("us")
    if of.is_duration(kind) and kind.unit == "ns":
        return pyarrow.duration("us")
    if of.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return pyarrow.struct([f.with_type(_plain_type(f.type, pyarrow)) for f in fields])
    if of.is_map(kind):
        return pyarrow.map_(_plain_type(kind.key_type, pyarrow), _plain_type(kind.item_type, pyarrow))
    if of.is_fixed_size_list(kind):
        return pyarrow.list_(_plain_type(kind.value_type, pyarrow), kind.list_size)
    if of.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(_plain_type(kind.value_type, pyarrow)))
    if of.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_plain_type(kind.value_type, pyarrow)))
    return kind


def _plain(value: Any) -> Any:
    """Return a value as an event's JSON would have it: decimals as numbers, times as text, bytes as text or base64."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # missing, as in an event
    if isinstance(value, Decimal):
        return _plain(float(value))
    if isinstance(value, dt.datetime | dt.date | dt.time):
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, tuple) and len(each) == 2 for each in value):
        return {str(key): _plain(each) for key, each in value}  # a map
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)


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
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
