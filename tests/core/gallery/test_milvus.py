"""Galleries in Milvus: the joint with a client that is made up, and all of it with a real server.

The fake knows what a collection is asked for and nothing about expressions; what those mean is
judged by the server, in milvus_server.py.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airnet_cli.core.gallery import milvus as joint
from airnet_cli.core.gallery.milvus import (
    Collection,
    expression_of,
    open_collection,
    storable_number,
)
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.retrieval.conditions import parse_condition
from airnet_cli.errors import DataError, RuntimeSetupError, UsageError

PLACE = MilvusPlace("localhost", 19530, "people")
PROJECT = Path(__file__).resolve().parents[2]
SERVER_SECONDS = 540


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gallery.npy", Path("gallery.npy")),
        ("milvus/gallery.npy", Path("milvus/gallery.npy")),
        (Path("milvus:/a"), Path("milvus:/a")),
        ("milvus://localhost:19530/people", PLACE),
        ("milvus://[::1]:1/_a1", MilvusPlace("[::1]", 1, "_a1")),
        ("milvuss://db:1/a", MilvusPlace("db", 1, "a", tls=True)),
    ],
)
def test_a_place_is_a_path_or_a_collection(text, expected):
    """Only what begins with milvus: is no path."""
    place = gallery_place(text)
    assert place == expected
    assert isinstance(text, Path) or str(place) == text


@pytest.mark.parametrize(
    "text",
    [
        "milvus:people",
        "milvus://localhost/people",
        "milvus://localhost:19530",
        "milvus://localhost:19530/",
        "milvus://localhost:0/people",
        "milvus://localhost:70000/people",
        "milvus://localhost:19530/people/more",
        "milvus://localhost:19530/two words",
        "milvus://localhost:19530/1people",
        "milvus://user:secret@localhost:19530/people",
        "milvus:///people",
    ],
)
def test_half_an_address_is_refused(text):
    """One line that shows a whole one."""
    with pytest.raises(UsageError, match="as in milvus://localhost:19530/people"):
        gallery_place(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("-03", -3),
        ("3.5", 3.5),
        ("1e3", 1000.0),
        ("9007199254740993", 9007199254740993),
        ("100000000000000000000000", 1e23),
        ("1e999", None),
        ("9" * 400, None),
        ("", None),
        ("three", None),
    ],
)
def test_numbers_that_can_be_stored(text, expected):
    """Whole numbers of 64 bits stay whole; what is too large is none."""
    assert storable_number(text) == expected
    assert type(storable_number(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera_id=3", 'numbers["camera_id"] == 3'),
        ("camera_id!=3", '(numbers["camera_id"] != 3) or (not exists numbers["camera_id"])'),
        ("day >= 2026-11-23", 'cells["day"] >= "2026-11-23"'),
        ('a "b"=x" or 1 == 1', 'cells["a \\"b\\""] == "x\\" or 1 == 1"'),
        ("path=3", 'path == "3"'),
    ],
)
def test_conditions_in_the_words_of_milvus(text, expected):
    """Numbers are looked up among the numbers; a text can't get out of its quotes."""
    assert expression_of(parse_condition(text)) == expected


def test_a_number_that_milvus_does_not_have():
    """It is refused, not compared as something else."""
    with pytest.raises(UsageError, match="no numbers of this size"):
        expression_of(parse_condition("a<1e999"))


def test_without_pymilvus(monkeypatch):
    """The line says what to install."""
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(RuntimeSetupError, match=r"pip install 'airnet\[milvus\]'"):
        open_collection(PLACE, token="")


@pytest.mark.parametrize(
    ("place", "token", "expected"),
    [
        ("milvus://db.example.com:1/a", "", "http://db.example.com:1"),
        ("milvuss://db.example.com:1/a", "user:word", "https://db.example.com:1"),
        ("milvus://127.0.0.1:1/a", "user:word", "http://127.0.0.1:1"),
        ("milvus://[::1]:1/a", "user:word", "http://[::1]:1"),
        ("milvus://db.example.com:1/a", "user:word", None),
        ("milvus://127.example.com:1/a", "user:word", None),
    ],
)
def test_a_token_crosses_a_network_only_by_tls(monkeypatch, place, token, expected):
    """Over plain HTTP it goes to this machine alone."""
    pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed (extra milvus)")
    asked = []

    class Client:
        def __init__(self, uri: str, **_: object) -> None:
            asked.append(uri)

        def has_collection(self, *_: object, **__: object) -> bool:
            return False

    monkeypatch.setattr(pymilvus, "MilvusClient", Client)
    error = UsageError if expected is None else DataError
    with pytest.raises(error, match="is not encrypted" if expected is None else "no collection a"):
        open_collection(gallery_place(place), token=token)
    assert asked == ([] if expected is None else [expected])


RECORD = {
    "format": "airnet-gallery",
    "format_version": 1,
    "fingerprint": "f" * 64,
    "heads": {"A1": [0, 2], "I": [2, 4]},
    "dimensions": 4,
    "flip": False,
    "normalize_heads": False,
    "preprocessing": {},
    "precision": "fp32",
    "dtype": "float32",
    "columns": ["camera_id"],
}


class Fake:
    """A client with one collection; it keeps what it was asked."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.rows: dict[str, dict[str, Any]] = {}
        self.batches: list[int] = []
        self.searches: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def describe_collection(self, name: str, **_: Any) -> dict[str, str]:
        return {"description": self.description}

    def list_indexes(self, name: str) -> list[str]:
        return ["embedding"]

    def load_collection(self, name: str, **_: Any) -> None: ...

    def describe_index(self, name: str, index: str) -> dict[str, str]:
        return {"index_type": "HNSW"}

    def upsert(self, name: str, rows: list[dict[str, Any]], **_: Any) -> None:
        if self.error is not None:
            raise self.error
        self.batches.append(len(rows))
        self.rows |= {row["path"]: row for row in rows}

    def search(self, name: str, **asked: Any) -> list[list[dict[str, Any]]]:
        """The rows in no order at all: whoever asks must score them."""
        self.searches.append(asked)
        return [[{"entity": row} for row in self.rows.values()] for _ in asked["data"]]


@pytest.fixture
def fake() -> Fake:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed (extra milvus)")
    return Fake(json.dumps(RECORD))


def fill(collection: Collection, embeddings) -> None:
    collection.append(
        [
            {
                "path": f"/images/{row}.png",
                "file": "",
                "columns": {"camera_id": f" {row} "},
                "embedding": values,
            }
            for row, values in enumerate(embeddings)
        ]
    )


def test_rows_are_sent_in_messages_that_fit(fake, monkeypatch):
    """However large a batch of the network is."""
    monkeypatch.setattr(joint, "MESSAGE_BYTES", 3 * joint.LONGEST_PATH + 100)
    fill(Collection(PLACE, fake), np.arange(40, dtype=np.float32).reshape(10, 4))
    assert fake.batches == [3, 3, 3, 1]
    assert fake.rows["/images/7.png"]["cells"] == {"camera_id": "7"}
    assert fake.rows["/images/7.png"]["numbers"] == {"camera_id": 7}
    assert fake.rows["/images/7.png"]["embedding"].tolist() == [28, 29, 30, 31]


def test_an_embedding_that_is_not_finite_is_refused(fake):
    """The image is named."""
    embeddings = np.ones((3, 4), np.float32)
    embeddings[1, 2] = np.nan
    with pytest.raises(DataError, match=r"'/images/1\.png' can't be added"):
        fill(Collection(PLACE, fake), embeddings)


def test_more_rows_are_fetched_than_wanted_a_few_queries_at_a_time(fake, monkeypatch):
    """They come as galleries, ordered by path, with the exact vectors."""
    collection = Collection(PLACE, fake)
    embeddings = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    fill(collection, embeddings)
    monkeypatch.setattr(joint, "REPLY_BYTES", 2 * 4 * 4 * 40)
    groups = list(collection.nearest(embeddings[:5], k=5, conditions=()))
    assert [(part.start, part.stop) for part, _ in groups] == [(0, 2), (2, 4), (4, 5)]
    assert all(asked["limit"] == 40 for asked in fake.searches)
    assert all(asked["search_params"]["params"] == {"ef": 64} for asked in fake.searches)
    near = groups[0][1]
    assert near.columns["path"] == tuple(sorted(fake.rows))
    for row, path in enumerate(near.columns["path"]):
        assert near.embeddings[row].tolist() == embeddings[int(Path(path).stem)].tolist()
        assert near.columns["camera_id"][row] == Path(path).stem
        assert near.image_path(row) == Path(path)
    with pytest.raises(UsageError, match="at most 16,384"):
        next(collection.nearest(embeddings, k=20_000, conditions=()))
    with pytest.raises(UsageError, match="has no column day; it has path, camera_id"):
        next(collection.nearest(embeddings, k=5, conditions=[parse_condition("day=1")]))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("", "is not of airnet"),
        ("people of the shop", "is not of airnet"),
        ("[]", "is not of airnet"),
        (json.dumps(RECORD | {"format_version": 2}), "has format version 2"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "flip"}), "has no valid flip"),
    ],
)
def test_a_collection_of_somebody_else_is_refused(fake, description, words):
    """Its rows mean nothing to us."""
    fake.description = description
    with pytest.raises(DataError, match=words):
        Collection(PLACE, fake)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("permission deny", "set AIRNET_MILVUS_TOKEN"),
        ("node\nis gone", "check the server, then repeat the command"),
    ],
)
def test_what_the_server_says_is_one_line(fake, message, advice):
    """With the collection, its words and what to do."""
    from pymilvus import MilvusException

    fake.error = MilvusException(code=1, message=message)
    with pytest.raises(DataError, match=advice) as raised:
        fill(Collection(PLACE, fake), np.ones((1, 4), np.float32))
    assert str(PLACE) in str(raised.value)
    assert " ".join(message.split()) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip (iproute2)")
@pytest.mark.skipif(
    find_spec("pymilvus") is None or find_spec("milvus") is None,
    reason="needs a server: pip install pymilvus milvus==2.3.5 (Linux, x86-64)",
)
def test_with_a_real_server(tmp_path):
    """milvus_server.py passes, in a network of its own: nobody else's ports are in the way."""
    isolated = ["unshare", "--net", *(["--map-root-user"] if os.geteuid() else []), "--"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare --net, which is not allowed here")
    tests = Path(__file__).with_name("milvus_server.py")
    inner = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    inner += [f"--basetemp={tmp_path / 'server'}"]
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*isolated, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *inner],
            cwd=PROJECT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=SERVER_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the server too
    assert code == 0, output.read_text()[-6000:]
    shutil.rmtree(tmp_path / "server")  # hundreds of megabytes
