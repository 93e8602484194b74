"""Galleries in a real Milvus: tests that test_milvus.py runs in a network of their own.

The server is the standalone binary of PyPI's `milvus`. It listens on fixed ports, which is why
these are not collected by themselves. The tests of this file build on each other's collection and
run in order; the last one kills the server.
"""

import contextlib
import csv
import hashlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.core.gallery import milvus as joint
from airnet_cli.core.gallery.files import Gallery, write_gallery
from airnet_cli.core.gallery.milvus import (
    open_collection,
)
from airnet_cli.core.gallery.place import gallery_place
from airnet_cli.core.retrieval.conditions import allowed_rows, parse_condition
from airnet_cli.errors import AirnetError, DataError
from airnet_cli.workflows.match import Matching, MatchOptions, match

ADDRESS = "127.0.0.1:19530"
ROWS, WIDTH = 1300, 24  # Milvus builds an index of 1024 rows and more
START_SECONDS = 240.0
ODD = [
    "3",
    "03",
    " 3 ",
    "3.0",
    "3.5",
    "-2",
    "",
    "x",
    'a "b" \\c',
    "Köln",
    "9007199254740993",
    "1e3",
]
"""Cells of a column, again and again."""


class Server:
    """The standalone server; its data stay in `folder` when it is killed."""

    def __init__(self, folder: Path) -> None:
        import milvus

        self.folder = folder
        config = milvus.MilvusServerConfig(data_dir=str(folder))
        config.resolve()
        milvus._initialize_data_files(str(folder))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binaries = self.folder / "bin"
        with (self.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                [str(binaries / "milvus"), "run", "standalone"],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                env=os.environ
                | {
                    "DEPLOY_MODE": "STANDALONE",
                    "METRICS_PORT": "9091",
                    "MILVUS_RUN_DIR": str(self.folder / "run"),
                    "LD_LIBRARY_PATH": str(binaries),
                    "GOMEMLIMIT": "1GiB",
                },
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen("http://127.0.0.1:9091/healthz", timeout=5) as answer,
            ):
                if b"OK" in answer.read():
                    return
            time.sleep(0.5)
        pytest.fail(f"the server did not start: {(self.folder / 'output.txt').read_text()[-2000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


class World:
    """The same rows as a gallery on disk and as a collection; the model is a file of bytes."""

    place = f"milvus://{ADDRESS}/people"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.checkpoint = self.runs / "first" / "model.safetensors"
        self.checkpoint.parent.mkdir(parents=True)
        self.checkpoint.write_bytes(b"the model of the gallery")
        (self.checkpoint.parent / "preset.json").write_text("{}")
        random = np.random.default_rng(0)
        self.embeddings = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
        self.embeddings[700] = 2 * self.embeddings[7]  # equally near to everything
        self.names = tuple(f"images/{row:04}.png" for row in range(ROWS))
        self.columns = {
            "camera_id": tuple(str(row % 5) for row in range(ROWS)),
            'odd / "name"': tuple(ODD[row % len(ODD)] for row in range(ROWS)),
        }
        self.record = {
            "fingerprint": hashlib.sha256(self.checkpoint.read_bytes()).hexdigest(),
            "checkpoint": str(self.checkpoint),
            "run": "first",
            "heads": {"A1": [0, 8], "I": [8, 24]},
            "normalize_heads": False,
            "flip": False,
            "preprocessing": {},
            "precision": "fp32",
        }
        self.file = folder / "gallery.npy"
        columns = {"path": self.names, **self.columns}
        source = Gallery(self.file, self.embeddings, columns, {}, {})
        write_gallery(self.file, source, self.record | {"dimensions": WIDTH, "dtype": "float32"})
        self.queries = folder / "queries.npy"
        near = self.embeddings[:40] + 0.5 * random.standard_normal((40, WIDTH)).astype(np.float32)
        np.save(self.queries, near)

    def write(self, rows: range, **changes: object) -> None:
        collection = open_collection(
            gallery_place(self.place),
            record={
                **self.record,
                "dimensions": WIDTH,
                "dtype": "float32",
                "columns": list(self.columns),
                **changes,
            },
            token="",
        )
        for begin in range(0, len(rows), 64):
            collection.append([self.row(row) for row in rows[begin : begin + 64]])

    def row(self, row: int) -> dict[str, object]:
        return {
            "path": str(self.folder / self.names[row]),
            "file": "",
            "columns": {name: cells[row] for name, cells in self.columns.items()},
            "embedding": self.embeddings[row],
        }

    def match(self, gallery: Path | str, **changes: object) -> Matching:
        settings = {
            "queries": [self.queries],
            "gallery": gallery,
            "k": 10,
            "threshold": 0.5,
            "far": None,
            "heads": None,
            "where": (),
            "rerank": False,
            "checkpoint": None,
            "runs_root": self.runs,
            "table": None,
            "picture": None,
            "page": None,
            "device": "cpu",
            "batch_size": 8,
            "workers": 0,
        }
        return match(MatchOptions(**settings | changes))


@pytest.fixture(scope="module")
def world(server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All rows but the last 100 are sealed and indexed; those are still with the writer's node."""
    made = World(tmp_path_factory.mktemp("world"))
    made.write(range(ROWS - 100))
    client = open_collection(gallery_place(made.place), token="")._client
    client.flush("people")
    end = time.monotonic() + 120
    while client.describe_index("people", "embedding").get("state") != "Finished":
        assert time.monotonic() < end, "the index was not built"
        time.sleep(0.5)
    made.write(range(ROWS - 100, ROWS))
    return made


def answers(matching: Matching) -> list[list[tuple[Path, float, float | None]]]:
    return [
        [(each.path, each.score, each.distance) for each in query.matches]
        for query in matching.queries
    ]


def count(place: str, *conditions: str) -> int:
    opened = open_collection(gallery_place(place), token="")
    return opened.count([parse_condition(text) for text in conditions])


CONDITIONS = [
    "camera_id!=3",
    "camera_id<=1",
    *(f'odd / "name"{operator}{value}' for operator in ("=", "!=") for value in [*ODD, "b"]),
    *(f'odd / "name"{operator}3.2' for operator in ("<", "<=", ">", ">=")),
    *(f'odd / "name"{operator}X' for operator in ("<", ">=")),
    'odd / "name">1e30',
    'odd / "name"<100000000000000000000000',
]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"where": ["camera_id!=3"]},
        {"where": ['odd / "name">2', "camera_id=1"]},
        {"rerank": True},
    ],
    ids=["all rows", "a condition", "two conditions", "re-ranked"],
)
def test_the_answers_are_those_of_the_exact_scan(world, settings):
    """The same images in the same order, with the same cosines to the last bit."""
    ours, exact = (world.match(gallery, **settings) for gallery in (world.place, world.file))
    assert answers(ours) == answers(exact)
    assert (ours.rows, ours.rows_searched) == (exact.rows, exact.rows_searched)


@pytest.mark.parametrize("text", CONDITIONS)
def test_conditions_mean_the_same_as_on_disk(world, text):
    """Milvus counts the rows that the plain reading of the table allows."""
    condition = parse_condition(text)
    try:
        expected = int(allowed_rows(world.columns, [condition]).sum())
    except DataError:
        expected = 0
    assert count(world.place, text) == expected


def test_an_approximate_index_gives_exact_scores(world):
    """What HNSW proposes is scored anew; here it finds everything."""
    client = open_collection(gallery_place(world.place), token="")._client
    for kind in ("HNSW", "FLAT"):
        client.release_collection("people")
        client.drop_index("people", "embedding")
        index = client.prepare_index_params()
        more = {"M": 16, "efConstruction": 200} if kind == "HNSW" else {}
        index.add_index("embedding", index_type=kind, metric_type="COSINE", params=more)
        client.create_index("people", index)
        client.load_collection("people")
        ours, exact = (answers(world.match(place)) for place in (world.place, world.file))
        both = list(zip(ours, exact, strict=True))
        found = [len({path for path, *_ in a} & {path for path, *_ in b}) for a, b in both]
        assert np.mean(found) > 9.8, kind
        for answer, truth in both:
            known = {path: score for path, score, _ in truth}
            assert [s for p, s, _ in answer if p in known] == [
                known[p] for p, *_ in answer if p in known
            ]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fingerprint": "f" * 64}, DataError, "rows of another model"),
        ({"heads": {"A1": [0, 24]}}, DataError, "rows of another heads"),
        ({"dimensions": 16}, DataError, "rows of another dimensions"),
        ({"columns": ["camera_id"]}, DataError, "has the columns"),
        ({"precision": "bf16"}, DataError, "rows of another precision"),
    ],
)
def test_other_rows_are_refused(world, changes, error, words):
    """A collection is of one model, embedded in one way."""
    with pytest.raises(error, match=words):
        world.write(range(1), **changes)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (f"milvus://{ADDRESS}/nobody", "has no collection nobody; `airnet embed"),
        ("milvus://127.0.0.1:19999/people", "no Milvus answers at 127.0.0.1:19999"),
        ("milvus://no-such-host.invalid:19530/people", "no Milvus answers at no-such-host"),
    ],
    ids=["collection", "port", "host"],
)
def test_what_is_not_there_is_said_soon(server, place, words):
    """One line, in seconds."""
    started = time.monotonic()
    with pytest.raises(DataError, match=words) as raised:
        open_collection(gallery_place(place), token="")
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 2 * joint.CONNECT_SECONDS


def test_the_commands_from_end_to_end(server, untrained_run, tmp_path, monkeypatch):
    """embed, embed --resume, match, count, delete, with a network and pictures."""
    monkeypatch.chdir(tmp_path)
    place = f"milvus://{ADDRESS}/crops"

    def airnet(*words: str) -> str:
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code == 0, result.stderr
        return result.output

    (tmp_path / "crops").mkdir()
    random = np.random.default_rng(0)
    for name in "abcde":
        pixels = random.integers(0, 256, (12, 5, 3), np.uint8)
        Image.fromarray(pixels).resize((50, 120)).save(f"crops/{name}.png")
    rows = "".join(f"crops/{name}.png,{camera}\n" for camera, name in enumerate("abcde"))
    (tmp_path / "crops.csv").write_text(f"path,camera_id\n{rows}")
    embed = ["embed", "crops.csv", "--checkpoint", str(untrained_run), "--workers", "0"]
    airnet(*embed, "-o", "gallery.npy")
    assert "crops" in airnet(*embed, "-o", place)
    assert count(place) == 5
    words = ["match", "crops", "--checkpoint", str(untrained_run), "--csv"]
    for gallery, table in (("gallery.npy", "file.csv"), (place, "ours.csv")):
        airnet(*words, table, "--gallery", gallery)
    ours, exact = (
        list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        for name in ("ours.csv", "file.csv")
    )
    for found, expected in zip(ours, exact, strict=True):
        assert Path(found.pop("path")) == Path(expected.pop("path")).absolute()
        assert (found.pop("row"), expected.pop("row") != "") == ("", True)
        assert found == expected
    os.utime("crops/b.png", (1, 1))
    assert "4 of 5 images are there already" in airnet(*embed, "-o", place, "--resume")
    airnet("gallery", "delete", place, "crops/a.png")
    airnet("gallery", "delete", place, "--where", "camera_id>3")
    assert '"rows": 3' in airnet("gallery", "count", place, "--json")
    for words in (["crops/a.png"], ["--where", "camera_id>3"]):
        result = CliRunner().invoke(app, ["gallery", "delete", place, *words])
        assert result.exit_code == 1
        assert "has no row" in result.stderr


def test_a_killed_server_loses_nothing(world, server, monkeypatch):
    """Rows that were taken are there when it runs again; while it is down, one line says so."""
    world.write(range(ROWS))  # not flushed: in the server's log alone
    before = answers(world.match(world.place))
    opened = open_collection(gallery_place(world.place), token="")
    server.kill()
    monkeypatch.setattr(joint, "CALL_SECONDS", 3.0)
    started = time.monotonic()
    with pytest.raises(AirnetError) as raised:
        opened.count()
    assert "\n" not in str(raised.value)
    assert ADDRESS in str(raised.value)
    assert time.monotonic() - started < 20
    monkeypatch.undo()
    server.start()
    assert count(world.place) == ROWS
    assert answers(world.match(world.place)) == before
