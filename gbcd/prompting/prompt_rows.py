"""The rows of a prompt file, whatever it is written as: JSON lines, a JSON array, CSV, Parquet, each also gzipped.

What it is, is seen by its first bytes; only CSV is known by its name. A row that cannot be read is a `BadInput` in its
place, so that all faults of a file are reported together.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gbcd.errors import BadInput

#: Longest line, in bytes; a model's context is a small part of it.
MAX_LINE = 2**20

_GZIP, _PARQUET, _UTF16 = b"\x1f\x8b", b"PAR1", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Row(NamedTuple):
    """A row, and its place: the number of its line, or of the row where there are no lines, counted from 1."""

    number: int
    value: Any


def rows(path: str) -> Generator[Row]:
    """Read the rows of `path` in order, as a stream.

    Raises:
        BadInput: the file cannot be read at all.
    """
    with opened(path) as file:
        head = file.read(4)
        file.seek(0)
        if head.startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield from _checked(unpacked, path.removesuffix(".gz"))
        else:
            yield from _checked(file, path)


def _checked(file: io.BufferedReader | gzip.GzipFile, name: str) -> Iterator[Row]:
    try:
        yield from _rows(file, name)
    except (EOFError, OSError, pa.ArrowException) as error:
        raise BadInput(f"it is damaged or cut off: {error}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from error
    except csv.Error as error:
        raise BadInput(f"it is not CSV: {error}") from error


def _rows(file: io.BufferedReader | gzip.GzipFile, name: str) -> Iterator[Row]:
    head = file.read(64)
    file.seek(0)
    if head.startswith(_UTF16):
        raise BadInput("line 1: the file is UTF-16; save it as UTF-8")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(_PARQUET):
        return _parquet(file)
    if name.lower().endswith((".csv", ".tsv")):
        return _csv(file, "\t" if name.lower().endswith(".tsv") else ",")
    if text.startswith(b"[") and not text.startswith(b'["'):
        return _array(file)
    return _lines(file)


def _lines(file: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    # every kind of line end; latin-1 keeps the bytes as they are, so that a fault is named by line
    with io.TextIOWrapper(file, encoding="latin-1", newline=None) as lines:
        number = 0
        while line := lines.readline(MAX_LINE + 1):
            number, length, end = number + 1, len(line), line
            while not end.endswith("\n") and (end := lines.readline(MAX_LINE)):
                length += len(end)
            if length > MAX_LINE:
                yield Row(number, BadInput(f"it has {length:,} bytes, more than {MAX_LINE:,}"))
            elif (value := _parsed(line.encode("latin-1"))) is not None:
                yield Row(number, value)


def _parsed(raw: bytes) -> Any:
    """The value of a line; None for a blank one."""
    raw = raw.removeprefix(codecs.BOM_UTF8).rstrip()
    try:
        return _value(raw.decode()) if raw else None
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except BadInput as error:
        return error


def _not_utf8(error: UnicodeDecodeError) -> BadInput:
    return BadInput(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")


def _value(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        if "\\u" in text:  # half a surrogate pair cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        fault = error.msg.removesuffix(" at").removesuffix(" starting")
        raise BadInput(f"{where}: Invalid JSON: {fault}") from error
    except (RecursionError, UnicodeEncodeError) as error:
        raise BadInput(f"Invalid JSON: {error}") from error
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{twice}: it is named twice")
    return found


def _array(file: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    yield from (Row(number, value) for number, value in enumerate(_value(file.read().decode("utf-8-sig")), 1))


def _csv(file: io.BufferedReader | gzip.GzipFile, delimiter: str) -> Iterator[Row]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter)
        for row in reader:
            if None in row:
                yield Row(reader.line_num, BadInput("it has more cells than the first line has columns"))
            else:
                yield Row(reader.line_num, {name: cell for name, cell in row.items() if name and cell})


def _parquet(file: io.BufferedReader | gzip.GzipFile) -> Iterator[Row]:
    source = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
    number = 0
    for batch in pq.ParquetFile(source).iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, {name: cell for name, cell in value.items() if cell is not None})


def opened(path: str) -> io.BufferedReader:
    """Open a file that can be read more than once.

    Raises:
        BadInput: there is none, or it is a folder or a pipe.
    """
    if not Path(path).is_file():
        raise BadInput("it does not exist, or is no regular file")
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadInput(f"it cannot be read: {error.strerror}") from error
