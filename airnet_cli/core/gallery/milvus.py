"""A gallery in a Milvus cluster: a collection whose description says which model made its rows.

    path        the image's absolute path: the key, so embedding an image again replaces its row
    file        size and time of the image when it was embedded, for `--resume`
    cells       JSON: the further columns, as text, as in a gallery's table
    numbers     JSON: those of them that are numbers, for conditions
    embedding   D float32, as the network computed them; the index compares by cosine

Milvus, whose index may be approximate, only proposes: it is asked for more rows than are wanted,
with their vectors, and `search` scores and orders these like those of a gallery on disk.

pymilvus (extra `milvus`) is imported when a collection is opened. Only calls that servers since 2.3
have are used.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.gallery.files import FORMAT, FORMAT_VERSION, Gallery, check_record
from airnet_cli.core.gallery.parts import check_agreement
from airnet_cli.core.gallery.place import MilvusPlace
from airnet_cli.core.retrieval.conditions import Condition, parse_number
from airnet_cli.errors import DataError, RuntimeSetupError, UsageError

CONNECT_SECONDS = 10.0
CALL_SECONDS = 60.0
LOAD_SECONDS = 600.0
"""How long a server may take: to answer at all, for one call, to load a collection."""

MESSAGE_BYTES = 16 * 2**20
"""Size of one upsert; servers take messages of up to 64 MB."""
REPLY_BYTES = 32 * 2**20
"""Size of the vectors that one search brings back, unless one query has more."""

KEYS_AT_ONCE = 4096
"""Paths that one query or deletion names."""
LONGEST_PATH = 4096
"""Bytes of a path."""
MOST_ASKED = 16_384
"""Rows that Milvus finds for one query."""

WIDTH_OF_SEARCH = {"HNSW": "ef", "DISKANN": "search_list"}
"""Indexes that must be told to look at as many rows as they are to find, and how."""


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
            if not client.list_indexes(place.collection):  # killed while it was created
                # FLAT is the exact scan; to use another index, drop this one and create yours.
                index = client.prepare_index_params()
                index.add_index("embedding", index_type="FLAT", metric_type="COSINE", params={})
                client.create_index(place.collection, index, timeout=CALL_SECONDS)
            client.load_collection(place.collection, timeout=LOAD_SECONDS)

    @property
    def gallery(self) -> Gallery:
        """What is known about all rows, as a gallery without rows."""
        return self._gallery([])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the further columns, besides `path`."""
        return tuple(self.record["columns"])

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        """How many rows fulfil all conditions.

        Raises:
            UsageError: a condition names a column that doesn't exist.
            DataError: the server refuses or doesn't answer.
        """
        (counted,) = self._query("count rows", self._expression(conditions), ["count(*)"])
        return int(counted["count(*)"])

    def stamps(self, keys: Sequence[str]) -> dict[str, str]:
        """What `file` says about the images that have a row, by their path."""
        found: dict[str, str] = {}
        for begin in range(0, len(keys), KEYS_AT_ONCE):
            named = list(keys[begin : begin + KEYS_AT_ONCE])
            expression, fields = f"path in {_quoted(named)}", ["path", "file"]
            rows = self._query("look up paths", expression, fields, limit=len(named))
            found |= {row["path"]: row["file"] for row in rows}
        return found

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, or replace those of the same images.

        Args:
            rows: with the keys `path`, `file`, `embedding` (D,), and `columns`: a dictionary of
                texts.

        Raises:
            DataError: a path is too long, an embedding is not finite, or the server refuses.
        """
        entities = []
        for row in rows:
            if len(row["path"].encode()) > LONGEST_PATH or not np.isfinite(row["embedding"]).all():
                raise DataError(
                    f"'{row['path'][:60]}' can't be added to '{self.place}': its path has more "
                    f"than {LONGEST_PATH:,} bytes, or its embedding is not finite; move the image, "
                    "or use --precision fp32"
                )
            cells = {name: cell.strip() for name, cell in row["columns"].items()}
            numbers = {name: storable_number(cell) for name, cell in cells.items()}
            own = {key: row[key] for key in ("path", "file", "embedding")}
            known = {name: number for name, number in numbers.items() if number is not None}
            entities.append({**own, "cells": cells, "numbers": known})
        step = max(1, MESSAGE_BYTES // (4 * self.record["dimensions"] + LONGEST_PATH))
        for begin in range(0, len(entities), step):
            with asking(self.place, "take rows"):
                self._client.upsert(
                    self.place.collection, entities[begin : begin + step], timeout=CALL_SECONDS
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
        """Yield, for some of the queries at a time, a gallery that has their nearest rows.

        Its rows are ordered by path: among equal scores the lower path comes first.

        Args:
            queries: (Q, D), whole embeddings.
            k: rows that are wanted for each query; more are fetched.
            conditions: that the rows fulfil.

        Raises:
            UsageError: `k` is more than Milvus finds; a condition on an unknown column.
            DataError: no row is found; the server refuses or doesn't answer.
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
                told = f"with {' and '.join(map(str, conditions))}" if conditions else "at all"
                raise DataError(
                    f"'{self.place}' has no row {told}; count rows with `airnet gallery count`"
                )
            yield part, self._gallery([rows[path] for path in sorted(rows)])

    def _width(self, asked: int) -> dict[str, int]:
        """What this collection's index is told besides the number of rows."""
        index = self._client.describe_index(self.place.collection, "embedding") or {}
        name = WIDTH_OF_SEARCH.get(str(index.get("index_type")))
        return {} if name is None else {name: max(64, asked)}

    def _gallery(self, rows: Sequence[Mapping[str, Any]]) -> Gallery:
        embeddings = [np.asarray(row["embedding"], np.float32) for row in rows]
        empty = np.empty((0, self.record["dimensions"]), np.float32)
        columns = {n: tuple(row["cells"].get(n, "") for row in rows) for n in self.columns}
        return Gallery(
            path=self.place,
            embeddings=np.stack(embeddings) if embeddings else empty,
            columns={"path": tuple(row["path"] for row in rows), **columns},
            heads={name: slice(*part) for name, part in self.record["heads"].items()},
            record=self.record,
        )

    def _expression(self, conditions: Sequence[Condition]) -> str:
        """The conditions in Milvus's language; they mean the same as in `allowed_rows`."""
        for condition in conditions:
            if condition.column not in ("path", *self.columns):
                raise UsageError(
                    f"condition '{condition}': '{self.place}' has no column {condition.column}; "
                    f"it has {', '.join(('path', *self.columns))}"
                )
        return " and ".join(f"({expression_of(condition)})" for condition in conditions)

    def _query(self, what: str, expression: str, fields: list[str], **limit: int) -> Any:
        with asking(self.place, what):
            return self._client.query(
                self.place.collection,
                filter=expression,
                output_fields=fields,
                timeout=CALL_SECONDS,
                **limit,
            )

    def _delete(self, expression: str) -> None:
        with asking(self.place, "delete rows"):
            self._client.delete(self.place.collection, filter=expression, timeout=CALL_SECONDS)


def open_collection(
    place: MilvusPlace, *, token: str, record: Mapping[str, Any] | None = None
) -> Collection:
    """Connect and open a collection.

    Args:
        place: of the collection.
        token: USER:PASSWORD, or an API key; empty for a server without a login.
        record: what makes the rows that are to be added, with `columns` and the keys of
            `MUST_AGREE`; then the collection is created if it doesn't exist.

    Raises:
        RuntimeSetupError: pymilvus is not installed.
        UsageError: the token would cross a network without encryption.
        DataError: there is no such server or collection, or its rows are of another kind.
    """
    client = _connect(place, token)
    with asking(place, "look it up"):
        exists = client.has_collection(place.collection, timeout=CALL_SECONDS)
    if record is None and not exists:
        raise DataError(
            f"Milvus at {place.address} has no collection {place.collection}; create it with "
            f"`airnet embed IMAGES -o {place}`"
        )
    if record is not None and not exists:
        with asking(place, "create it"):
            _create(place, client, record)
    collection = Collection(place, client)
    if record is not None:
        plain = json.loads(json.dumps(record))
        check_agreement(plain, collection.record, str(place))
        if plain["columns"] != collection.record["columns"]:
            raise DataError(
                f"'{place}' has the columns {', '.join(collection.columns)}, and these images have "
                f"{', '.join(plain['columns'])}; embed them into another collection"
            )
    return collection


def _create(place: MilvusPlace, client: Any, record: Mapping[str, Any]) -> None:
    from pymilvus import DataType

    described = {"format": FORMAT, "format_version": FORMAT_VERSION, **record}
    schema = client.create_schema(
        auto_id=False, enable_dynamic_field=False, description=json.dumps(described)
    )
    schema.add_field("path", DataType.VARCHAR, is_primary=True, max_length=LONGEST_PATH)
    schema.add_field("file", DataType.VARCHAR, max_length=64)
    schema.add_field("cells", DataType.JSON)
    schema.add_field("numbers", DataType.JSON)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=record["dimensions"])
    client.create_collection(
        place.collection,
        schema=schema,
        consistency_level="Strong",  # the next command, or --resume, finds what was written
        timeout=CALL_SECONDS,
    )


def _read_record(place: MilvusPlace, description: str) -> dict[str, Any]:
    try:
        described = json.loads(description)
    except ValueError:
        described = None
    if not isinstance(described, dict) or not isinstance(described.get("columns"), list):
        raise DataError(
            f"collection '{place}' is not of airnet: its description doesn't name a model; choose "
            "another name"
        )
    return check_record({"rows": 0, **described}, name=str(place), format_name=FORMAT)


def storable_number(text: str) -> int | float | None:
    """The number that `text` is, if JSON and Milvus can store it.

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
    """One condition in Milvus's language.

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
    # A cell that is not a number differs from every number; servers do not agree on that.
    # The brackets are needed: `exists` takes in what follows it.
    return f"({compared}) or (not exists numbers[{name}])" if operator == "!=" else compared


@contextlib.contextmanager
def asking(place: MilvusPlace, what: str) -> Iterator[None]:
    """Turn an answer of Milvus that it can't do `what` into one line."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = _reason(error)
        advice = "check the server, then repeat the command"
        if re.search("permission|auth|privilege", reason, re.IGNORECASE):
            advice = "set AIRNET_MILVUS_TOKEN to USER:PASSWORD of a user with that permission"
        raise DataError(f"collection '{place}': can't {what}: {reason}; {advice}") from None


def _connect(place: MilvusPlace, token: str) -> Any:
    """A client of the server."""
    if token and not place.tls and not place.is_local:
        raise UsageError(
            f"'{place}' is not encrypted, so AIRNET_MILVUS_TOKEN would be readable on the network; "
            f"use TLS (milvuss://{place.address}/{place.collection}), or unset the variable"
        )
    try:
        from pymilvus import MilvusClient, MilvusException
    except ImportError:
        raise RuntimeSetupError(
            f"'{place}' needs pymilvus, which is not installed; pip install 'airnet[milvus]'"
        ) from None
    # It logs each error with its traceback, besides raising it.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    uri = f"http{'s' * place.tls}://{place.address}"
    try:
        return MilvusClient(uri=uri, token=token, timeout=CONNECT_SECONDS)
    except MilvusException as error:
        raise DataError(
            f"no Milvus answers at {place.address}: {_reason(error)}; start it, correct the "
            f"address in '{place}', or set AIRNET_MILVUS_TOKEN to USER:PASSWORD"
        ) from None


def _quoted(value: object) -> str:
    """A text, or a list of texts, as Milvus's expressions and JSON both write it."""
    return json.dumps(value, ensure_ascii=False)


def _reason(error: Exception) -> str:
    """What Milvus said, on one line of limited length."""
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
