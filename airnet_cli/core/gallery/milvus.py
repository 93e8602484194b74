"""A gallery in a Milvus cluster: a collection whose description says which model made its rows.

    path        the image's absolute path: the key, so that embedding it again replaces its row
    file        size and time of the image when it was embedded: what a stopped job has done
    cells       JSON: the further columns, as text, as in a gallery's table
    numbers     JSON: those of them that are numbers, for conditions
    embedding   D float32, as the network gave them; the index compares by cosine

The engine, whose index may be approximate, only proposes: it is asked for more rows than are
wanted, with their vectors, and `search` scores and orders those as it does a gallery on disk.

pymilvus (extra `milvus`) is imported when a collection is opened, and never otherwise. Only calls
that servers since 2.3 have are used.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.gallery.files import FORMAT, FORMAT_VERSION, Gallery
from airnet_cli.core.gallery.files import MUST_AGREE as ALIKE
from airnet_cli.core.retrieval.conditions import Condition, parse_number
from airnet_cli.errors import CheckpointError, DataError, RuntimeSetupError, UsageError

CONNECT_SECONDS = 10.0
CALL_SECONDS = 60.0
LOAD_SECONDS = 600.0
"""How long a server may take: to answer at all, for one call, to load a collection."""

BATCH_BYTES = 16 * 2**20
"""Of an upsert; servers take messages of up to 64 MB."""
BATCH_SECONDS = 5.0
"""How much work a kill may cost."""
REPLY_BYTES = 32 * 2**20
"""Of the vectors that one search brings back, where one query's are not more."""

KEYS_AT_ONCE = 4096
"""Paths that one query or deletion names."""
LONGEST_PATH = 4096
"""Bytes of a path."""
MOST_ASKED = 16_384
"""Rows that Milvus finds for one query."""

WIDTH_OF_SEARCH = {"HNSW": "ef", "DISKANN": "search_list"}
"""Indexes that must be told to look at as many rows as they are to find, and how."""

MUST_AGREE = (*ALIKE, "columns")
"""What all rows of a collection have in common."""


@dataclass(frozen=True, slots=True)
class MilvusPlace:
    """Where a collection is."""

    host: str
    port: int
    collection: str
    tls: bool = False
    """Whether the connection is encrypted: milvuss:// instead of milvus://."""

    @property
    def name(self) -> str:
        """The collection's, as a file's name is that of a gallery on disk."""
        return self.collection

    @property
    def address(self) -> str:
        """Of the server."""
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"milvus{'s' * self.tls}://{self.address}/{self.collection}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that nothing crosses a network."""
        host = self.host.strip("[]")
        return host == "localhost" or host == "::1" or host.startswith("127.")


def gallery_place(place: str | Path) -> Path | MilvusPlace:
    """The place of a gallery: a path, or milvus://HOST:PORT/COLLECTION (milvuss:// with TLS).

    >>> gallery_place("milvuss://db.example.com:19530/people")
    MilvusPlace(host='db.example.com', port=19530, collection='people', tls=True)

    Raises:
        UsageError: it begins with milvus: and goes on in another way, or it is another URL.
    """
    is_milvus = isinstance(place, str) and place.startswith(("milvus:", "milvuss:"))
    if isinstance(place, str) and "://" in place and not is_milvus:
        raise UsageError(
            f"'{place}' is a URL, and galleries are read from disk; fetch it first, as with "
            "`aws s3 cp --recursive`, and give the folder"
        )
    if not is_milvus:
        return Path(place)
    found = re.fullmatch(
        r"milvus(s?)://(\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+):([0-9]{1,5})/([A-Za-z_][A-Za-z0-9_]{0,254})",
        str(place),
    )
    if found is None or not 0 < int(found[3]) < 2**16:
        raise UsageError(
            f"'{place}' is not a collection; write milvus://HOST:PORT/COLLECTION (milvuss:// with "
            "TLS), the last with letters, digits and _, as in milvus://localhost:19530/people"
        )
    return MilvusPlace(found[2], int(found[3]), found[4], tls=bool(found[1]))


def file_stamp(path: Path) -> str:
    """Size and time of a file, by which it is known to have changed; empty where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


class Collection:
    """An open collection of airnet."""

    def __init__(self, place: MilvusPlace, client: Any) -> None:
        """Open the collection with a `pymilvus.MilvusClient`; `open_collection` is the usual way.

        Raises:
            DataError: it is not of airnet, or the server refuses.
        """
        self.place = place
        self._client = client
        with asking(place, "describe it"):
            described = client.describe_collection(place.collection, timeout=CALL_SECONDS)
        self.record = _read_record(place, str(described.get("description", "")))
        with asking(place, "load it"):
            if not client.list_indexes(place.collection):  # killed while it was made
                _make_index(place, client)
            client.load_collection(place.collection, timeout=LOAD_SECONDS)

    @property
    def gallery(self) -> Gallery:
        """What is known of all rows, as a gallery that holds none."""
        return self._gallery([], [], [])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the further columns, besides `path`."""
        return tuple(self.record["columns"])

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        """How many rows fulfil all conditions.

        Raises:
            UsageError: a condition names a column that is not there.
            DataError: the server refuses, or is away.
        """
        expression = self._expression(conditions)
        with asking(self.place, "count rows"):
            (counted,) = self._client.query(
                self.place.collection,
                filter=expression,
                output_fields=["count(*)"],
                timeout=CALL_SECONDS,
            )
        return int(counted["count(*)"])

    def stamps(self, keys: Sequence[str]) -> dict[str, str]:
        """The `file_stamp` of the images that have a row, by their path; others are left out."""
        found: dict[str, str] = {}
        for begin in range(0, len(keys), KEYS_AT_ONCE):
            named = list(keys[begin : begin + KEYS_AT_ONCE])
            with asking(self.place, "look up paths"):
                rows = self._client.query(
                    self.place.collection,
                    filter=f"path in {_quoted(named)}",
                    output_fields=["path", "file"],
                    limit=len(named),
                    timeout=CALL_SECONDS,
                )
            found |= {row["path"]: row["file"] for row in rows}
        return found

    def upsert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put rows in, each in the place of one with the same path if there is one."""
        with asking(self.place, "take rows"):
            self._client.upsert(
                self.place.collection, [dict(row) for row in rows], timeout=CALL_SECONDS
            )

    def delete(self, keys: Sequence[str]) -> int:
        """Delete the rows of these paths; how many there were."""
        there = list(self.stamps(keys))
        for begin in range(0, len(there), KEYS_AT_ONCE):
            self._delete(f"path in {_quoted(there[begin : begin + KEYS_AT_ONCE])}")
        return len(there)

    def delete_where(self, conditions: Sequence[Condition]) -> int:
        """Delete the rows that fulfil all conditions, at least one; how many there were."""
        assert conditions, "all rows are never meant"
        count = self.count(conditions)
        if count:
            self._delete(self._expression(conditions))
        return count

    def nearest(
        self, queries: npt.NDArray[np.float32], *, k: int, conditions: Sequence[Condition]
    ) -> Iterator[tuple[slice, Gallery]]:
        """Yield, for a few of the queries at a time, a gallery of rows among which their nearest
        are.

        The rows are ordered by path, as those of a gallery on disk: so are equal scores.

        Args:
            queries: (Q, D), whole embeddings.
            k: rows that are wanted for each query; more are fetched.
            conditions: that the rows fulfil.

        Raises:
            UsageError: `k` is more than Milvus gives; a condition on a column that is not there.
            DataError: no row is found; the server refuses, or is away.
        """
        if k > MOST_ASKED:
            raise UsageError(f"-k {k}: Milvus finds at most {MOST_ASKED:,}; ask for fewer")
        expression = self._expression(conditions)
        # Enough for what float32 and an approximate index put into another order.
        asked = min(MOST_ASKED, 2 * k + 30)
        at_once = max(1, REPLY_BYTES // (4 * queries.shape[1] * asked))
        for begin in range(0, len(queries), at_once):
            part = slice(begin, min(len(queries), begin + at_once))
            with asking(self.place, "search"):
                found = self._client.search(
                    self.place.collection,
                    data=list(queries[part]),
                    anns_field="embedding",
                    filter=expression,
                    limit=asked,
                    output_fields=["path", "cells", "embedding"],
                    search_params={"metric_type": "COSINE", "params": self._width(asked)},
                    timeout=CALL_SECONDS,
                )
            rows = {hit["entity"]["path"]: hit["entity"] for hits in found for hit in hits}
            if not rows:
                raise DataError(
                    f"nothing was found in '{self.place}'"
                    + (f" under {' and '.join(map(str, conditions))}" if conditions else "")
                    + "; `airnet gallery count` says how many rows there are"
                )
            paths = sorted(rows)
            yield (
                part,
                self._gallery(
                    paths,
                    [rows[path]["cells"] for path in paths],
                    [np.asarray(rows[path]["embedding"], np.float32) for path in paths],
                ),
            )

    def _width(self, asked: int) -> dict[str, int]:
        """What this collection's index is told beside the number of rows."""
        index = self._client.describe_index(self.place.collection, "embedding") or {}
        name = WIDTH_OF_SEARCH.get(str(index.get("index_type")))
        return {} if name is None else {name: max(64, asked)}

    def _gallery(
        self,
        paths: Sequence[str],
        cells: Sequence[Mapping[str, str]],
        embeddings: Sequence[npt.NDArray[np.float32]],
    ) -> Gallery:
        width = self.record["dimensions"]
        return Gallery(
            path=self.place,
            embeddings=np.stack(embeddings) if embeddings else np.empty((0, width), np.float32),
            columns={
                "path": tuple(paths),
                **{name: tuple(row.get(name, "") for row in cells) for name in self.columns},
            },
            heads={name: slice(*part) for name, part in self.record["heads"].items()},
            record=self.record,
        )

    def _expression(self, conditions: Sequence[Condition]) -> str:
        """The conditions in Milvus's words; they mean what `allowed_rows` makes of them."""
        for condition in conditions:
            if condition.column not in ("path", *self.columns):
                raise UsageError(
                    f"condition '{condition}': '{self.place}' has no column {condition.column}; "
                    f"it has {', '.join(('path', *self.columns))}"
                )
        return " and ".join(f"({expression_of(condition)})" for condition in conditions)

    def _delete(self, expression: str) -> None:
        with asking(self.place, "delete rows"):
            self._client.delete(self.place.collection, filter=expression, timeout=CALL_SECONDS)


def open_collection(place: MilvusPlace, *, token: str) -> Collection:
    """Connect, and open a collection that is there.

    Args:
        place: of the collection.
        token: USER:PASSWORD, or an API key; empty for a server that asks for none.

    Raises:
        RuntimeSetupError: pymilvus is not installed.
        DataError: the server or the collection is not there, or not of airnet.
    """
    client = _connect(place, token)
    with asking(place, "look it up"):
        is_there = client.has_collection(place.collection, timeout=CALL_SECONDS)
    if not is_there:
        raise DataError(
            f"Milvus at {place.address} has no collection {place.collection}; "
            f"`airnet embed IMAGES -o {place}` makes it"
        )
    return Collection(place, client)


def make_collection(place: MilvusPlace, *, record: Mapping[str, Any], token: str) -> Collection:
    """Connect, and open a collection for rows that `record` describes; make it if it is not there.

    Args:
        place: of the collection.
        record: as in a gallery's .json, with all of `MUST_AGREE`.
        token: see `open_collection`.

    Raises:
        RuntimeSetupError: pymilvus is not installed.
        CheckpointError: the collection's rows are of another model.
        DataError: they differ otherwise; the server is not there, or refuses.
    """
    client = _connect(place, token)
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **record}
    with asking(place, "make it"):
        if not client.has_collection(place.collection, timeout=CALL_SECONDS):
            _create(place, client, record)
    collection = Collection(place, client)
    _check_agreement(collection, json.loads(json.dumps(record)))
    return collection


class CollectionWriter:
    """Puts embedded images into a collection as they come, several megabytes at a time.

    As a context manager, whatever ends the block leaves what was embedded in the collection.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        keys: Sequence[str],
        paths: Sequence[Path],
        columns: Mapping[str, Sequence[str]],
    ) -> None:
        """Take N images: their keys (`path` in the collection), where they lie, their cells.

        Raises:
            DataError: a key is too long.
        """
        for key in keys:
            if len(key.encode()) > LONGEST_PATH:
                raise DataError(
                    f"the path '{key[:60]}…' is longer than {LONGEST_PATH:,} bytes, which is what "
                    "a collection takes; move the image"
                )
        self.done = 0
        """Images that are finished, bad ones included."""
        self.skipped: tuple[dict[str, str], ...] = ()
        """Path and reason of each bad image so far."""
        self._collection = collection
        self._keys = keys
        self._paths = paths
        self._columns = columns
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._sent = time.monotonic()

    def __enter__(self) -> "CollectionWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.send()
        else:  # what ends the block is worth more than the rows of some seconds
            with contextlib.suppress(DataError):
                self.send()

    def append(
        self,
        indices: Sequence[int],
        embeddings: npt.NDArray[np.floating[Any]],
        bad: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Add the next images: rows for `indices`, none for those that are `bad` (with reasons).

        Raises:
            DataError: an embedding that is not finite; the server refuses, or is away.
        """
        for index, values in zip(indices, embeddings, strict=True):
            if not np.isfinite(values).all():
                raise DataError(
                    f"the embedding of '{self._keys[index]}' is not finite; use --precision fp32, "
                    "or else the model is broken"
                )
            row = self._row(index, values)
            size = values.size * 4 + len(json.dumps([row["path"], row["cells"], row["numbers"]]))
            if self._bytes + size > BATCH_BYTES:
                self.send()
            self._rows.append(row)
            self._bytes += size
        self.skipped += tuple({"path": self._keys[i], "reason": reason} for i, reason in bad)
        self.done += len(indices) + len(bad)
        if time.monotonic() - self._sent >= BATCH_SECONDS:
            self.send()

    def send(self) -> None:
        """Bring what was added to the server."""
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            self._collection.upsert(rows)
        self._sent = time.monotonic()

    def _row(self, index: int, values: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
        cells = {name: column[index].strip() for name, column in self._columns.items()}
        numbers = {name: storable_number(cell) for name, cell in cells.items()}
        return {
            "path": self._keys[index],
            "file": file_stamp(self._paths[index]),
            "cells": cells,
            "numbers": {name: number for name, number in numbers.items() if number is not None},
            "embedding": values.astype(np.float32),
        }


def storable_number(text: str) -> int | float | None:
    """The number that `text` is, as JSON and Milvus hold it; None where it is none, or too large.

    >>> storable_number("03"), storable_number("3.5"), storable_number("x")
    (3, 3.5, None)
    """
    number = parse_number(text)
    if number is None or (isinstance(number, int) and -(2**63) <= number < 2**63):
        return number
    try:
        number = float(number)
    except OverflowError:
        return None
    return number if np.isfinite(number) else None


def expression_of(condition: Condition) -> str:
    """One condition in Milvus's words.

    >>> print(expression_of(Condition("camera_id", "=", "3")))
    numbers["camera_id"] == 3

    Raises:
        UsageError: its number is larger than Milvus can compare.
    """
    name, value = _quoted(condition.column), condition.value
    operator = "==" if condition.operator == "=" else condition.operator
    if condition.column == "path":
        return f"path {operator} {_quoted(value)}"
    if parse_number(value) is None:
        return f"cells[{name}] {operator} {_quoted(value)}"
    number = storable_number(value)
    if number is None:
        raise UsageError(f"condition '{condition}': Milvus has no numbers of this size")
    compared = f"numbers[{name}] {operator} {number!r}"
    # A cell that is no number differs from every number; servers do not agree on that.
    # The brackets are needed: `exists` takes in what follows it.
    return f"({compared}) or (not exists numbers[{name}])" if operator == "!=" else compared


@contextlib.contextmanager
def asking(place: MilvusPlace, what: str) -> Iterator[None]:
    """Make one line of what Milvus answers when it can't `what`."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = _reason(error)
        lower = reason.lower()
        if "permission" in lower or "auth" in lower or "privilege" in lower:
            what_to_do = "set AIRNET_MILVUS_TOKEN to USER:PASSWORD of somebody who may"
        elif "memory" in lower or "quota" in lower or "limit" in lower:
            what_to_do = "give it more room, or repeat the command later"
        else:
            what_to_do = "see whether the server is well, then repeat the command"
        raise DataError(f"collection '{place}': can't {what}: {reason}; {what_to_do}") from None


def _connect(place: MilvusPlace, token: str) -> Any:
    """A client of the server."""
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError:
        raise RuntimeSetupError(
            f"'{place}' needs pymilvus, which is not installed; `pip install 'airnet[milvus]'` "
            "brings it"
        ) from None
    # It logs each error with its traceback, besides raising it.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    if token and not place.tls and not place.is_local:
        raise UsageError(
            f"'{place}' is not encrypted, so AIRNET_MILVUS_TOKEN would be readable on the network; "
            f"use TLS (milvuss://{place.address}/{place.collection}), or unset the variable"
        )
    scheme = "https" if place.tls else "http"
    try:
        return MilvusClient(uri=f"{scheme}://{place.address}", token=token, timeout=CONNECT_SECONDS)
    except MilvusException as error:
        reason = _reason(error)
        if "auth" in reason.lower() or "permission" in reason.lower():
            raise DataError(
                f"Milvus at {place.address} does not let us in: {reason}; set AIRNET_MILVUS_TOKEN "
                "to USER:PASSWORD"
            ) from None
        raise DataError(
            f"no Milvus answers at {place.address}: {reason}; start it, or correct the address in "
            f"'{place}'"
        ) from None


def _create(place: MilvusPlace, client: Any, record: Mapping[str, Any]) -> None:
    from pymilvus import DataType

    schema = client.create_schema(
        auto_id=False, enable_dynamic_field=False, description=json.dumps(record)
    )
    schema.add_field("path", DataType.VARCHAR, is_primary=True, max_length=LONGEST_PATH)
    schema.add_field("file", DataType.VARCHAR, max_length=64)
    schema.add_field("cells", DataType.JSON)
    schema.add_field("numbers", DataType.JSON)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=record["dimensions"])
    client.create_collection(
        place.collection,
        schema=schema,
        consistency_level="Strong",  # what was written is found: by the next command, by --resume
        timeout=CALL_SECONDS,
    )


def _make_index(place: MilvusPlace, client: Any) -> None:
    """FLAT is the exact scan; who wants another index drops this one and makes theirs."""
    index = client.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="COSINE", params={})
    client.create_index(place.collection, index, timeout=CALL_SECONDS)


def _read_record(place: MilvusPlace, description: str) -> dict[str, Any]:
    try:
        record = json.loads(description)
        is_ours = record["format"] == FORMAT
        missing = [key for key in MUST_AGREE if key not in record]
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise DataError(
            f"collection '{place}' is not of airnet: its description says nothing about a model; "
            "choose another name"
        )
    if record.get("format_version") != FORMAT_VERSION or missing:
        raise DataError(
            f"collection '{place}' has format version {record.get('format_version')} and lacks "
            f"{', '.join(missing) or 'nothing'}; this airnet reads {FORMAT_VERSION}: update "
            "airnet, or embed into another collection"
        )
    return dict(record)


def _check_agreement(collection: Collection, record: Mapping[str, Any]) -> None:
    place, there = collection.place, collection.record
    for key in MUST_AGREE:
        if there[key] == record[key]:
            continue
        if key == "fingerprint":
            raise CheckpointError(
                f"collection '{place}' holds embeddings of '{there.get('checkpoint', 'a model')}' "
                f"({there[key][:12]}), and '{record.get('checkpoint', 'this')}' is another model "
                f"({record[key][:12]}): they can't be compared; use the same model, or another "
                "collection"
            )
        raise DataError(
            f"collection '{place}' differs in {key}: it has {_short(there[key])}, this command "
            f"{_short(record[key])}; embed as before, or into another collection"
        )


def _quoted(value: object) -> str:
    """A text, or a list of texts, as Milvus's expressions and JSON both write it."""
    return json.dumps(value, ensure_ascii=False)


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reason(error: Exception) -> str:
    """What Milvus said, on one line of bearable length."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
