"""Matching: what is found, by which model, what it means, and what is written."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.gallery.files import Gallery, write_gallery
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    OperatingPoint,
    ScoreCalibration,
    calibration_path,
    write_calibration,
)
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_distances
from airnet_cli.errors import AirnetError, CheckpointError, DataError, UsageError
from airnet_cli.workflows.embed import embed
from airnet_cli.workflows.embed_parts import EmbedOptions
from airnet_cli.workflows.match import Matching, MatchOptions, match

HEADS = {"A1": [0, 8], "A2": [8, 16], "I": [16, 24]}


class World:
    """A folder with a gallery of drawn features, whose model is a file that nobody can load."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.checkpoint = self.add_checkpoint("first", b"the model of the gallery")
        self.embeddings = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
        self.gallery = self.write("gallery.npy", self.embeddings)

    def add_checkpoint(self, run: str, content: bytes) -> Path:
        path = self.runs / run / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        (path.parent / "preset.json").write_text("{}")
        return path

    def write(self, name: str, embeddings, *, dtype="float32", **changes) -> Path:
        """Write a gallery as `airnet embed` does, person i % 8 by camera i % 3."""
        path = self.folder / name
        rows = range(len(embeddings))
        images = tuple(f"images/{row:02}.png" for row in rows)
        for image in images:
            (self.folder / "images").mkdir(exist_ok=True)
            Image.new("RGB", (16, 32), (len(image), 90, 9)).save(self.folder / image)
        columns = {
            "person_id": tuple(str(row % 8) for row in rows),
            "camera_id": tuple(str(row % 3) for row in rows),
        }
        record = {
            "fingerprint": hashlib.sha256(self.checkpoint.read_bytes()).hexdigest(),
            "checkpoint": str(self.checkpoint),
            "run": "first",
            "heads": HEADS,
            "normalize_heads": False,
            "flip": False,
        }
        source = Gallery(path, embeddings, {"path": images, **columns}, {}, {})
        write_gallery(path, source, record | {"dimensions": 24, "dtype": dtype} | changes)
        return path

    def features(self, matrix, name="queries.npy") -> Path:
        """Plain features of any tool."""
        np.save(self.folder / name, matrix)
        return self.folder / name

    def calibrate(self, **changes) -> Path:
        """Keep a calibration beside the checkpoint: 0.5 at a rate of 0.001, heads higher."""

        def meaning(shift):
            points = tuple(
                OperatingPoint(far, threshold + shift, far, 0.8)
                for far, threshold in ((1e-3, 0.5), (1e-2, 0.25))
            )
            return ScoreCalibration(100, 5000, 0.1, 0.3 + shift, points)

        calibration = Calibration(
            fingerprint=hashlib.sha256(self.checkpoint.read_bytes()).hexdigest(),
            data="demo",
            camera_filter=True,
            precision="fp32",
            normalize_heads=False,
            flip=False,
            whole=meaning(0),
            heads={name: meaning(0.125 * (place + 1)) for place, name in enumerate(HEADS)},
        )
        path = calibration_path(self.checkpoint)
        write_calibration(path, replace(calibration, **changes))
        return path

    def match(self, *queries: Path, **changes) -> Matching:
        settings = {
            "queries": queries,
            "gallery": self.gallery,
            "k": 5,
            "threshold": None,
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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def obvious(queries, gallery, k):
    """Every cosine, sorted: equal ones by row."""
    queries, gallery = (m.astype(np.float64) for m in (queries, gallery))
    cosines = np.array([[q @ g / np.sqrt((q @ q) * (g @ g)) for g in gallery] for q in queries])
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows.tolist(), np.take_along_axis(cosines, rows, axis=1)


def found_rows(matching: Matching):
    return [[found.row for found in query.matches] for query in matching.queries]


def found_scores(matching: Matching):
    return np.array([[found.score for found in query.matches] for query in matching.queries])


# What is found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_equals_the_obvious_computation(world: World, k: int, dtype: str) -> None:
    """Rows, scores and paths of several queries, duplicates among the gallery's rows included."""
    stored = world.embeddings.astype(dtype)
    stored[[9, 17, 30]] = stored[3]
    gallery = world.write("duplicates.npy", stored, dtype=dtype)
    queries = np.concatenate([stored[[3, 8]].astype(np.float32), world.embeddings[:2] + 0.5])

    matching = world.match(world.features(queries), gallery=gallery, k=k)

    rows, scores = obvious(queries, stored, k)
    assert found_rows(matching) == rows
    np.testing.assert_allclose(found_scores(matching), scores, atol=1e-6)
    best = matching.queries[0].matches[0]
    assert (best.rank, best.row, best.path) == (1, 3, world.folder / "images/03.png")
    assert best.columns == {"person_id": "3", "camera_id": "0"}


@pytest.mark.parametrize(
    ("heads", "columns"),
    [(["A2"], range(8, 16)), (["I", "A1"], [*range(8), *range(16, 24)])],
    ids=["one head", "two heads"],
)
def test_heads_alone(world: World, heads, columns) -> None:
    """Only the slices of the chosen heads are compared, in the gallery's order."""
    queries = world.embeddings[:3] + 0.3
    matching = world.match(world.features(queries), heads=heads)
    rows, _ = obvious(queries[:, columns], world.embeddings[:, columns], 5)
    assert found_rows(matching) == rows
    assert matching.heads == tuple(sorted(heads))


def test_conditions_leave_rows_out(world: World) -> None:
    """All conditions must hold; rows keep their numbers."""
    matching = world.match(
        world.features(world.embeddings[:1]), where=["camera_id!=0", "person_id<=3"], k=100
    )
    expected = {row for row in range(40) if row % 3 != 0 and row % 8 <= 3}
    assert set(found_rows(matching)[0]) == expected
    assert (matching.rows, matching.rows_searched) == (40, len(expected))
    assert matching.where == ("camera_id!=0", "person_id<=3")


def test_queries_keep_their_order(world: World) -> None:
    """Feature files come in the order in which they were named, row by row."""
    named = world.write("named.npy", world.embeddings[5:7])
    plain = world.features(world.embeddings[30:32])
    vector = world.features(world.embeddings[12], "vector.npy")
    matching = world.match(plain, named, vector, k=1)
    assert found_rows(matching) == [[30], [31], [5], [6], [12]]
    assert [query.query for query in matching.queries] == [
        f"{plain}[0]", f"{plain}[1]",
        str(world.folder / "images/00.png"), str(world.folder / "images/01.png"),
        f"{vector}[0]",
    ]  # fmt: skip


def test_re_ranking_orders_by_neighbours(world: World) -> None:
    """The order is that of the k-reciprocal distances; scores stay cosines."""
    queries = world.embeddings[:2] + 0.4
    matching = world.match(world.features(queries), rerank=True, k=7)
    plain = world.match(world.features(queries), k=40)
    for query, by_cosine, vector in zip(matching.queries, plain.queries, queries, strict=True):
        cosine = {found.row: found.score for found in by_cosine.matches}
        distances = k_reciprocal_distances(
            queries=vector[None], gallery=world.embeddings, reranking=Reranking()
        )[0]
        expected = sorted(range(40), key=lambda row: (distances[row], -cosine[row]))[:7]
        assert [found.row for found in query.matches] == expected
        for found in query.matches:
            assert found.score == cosine[found.row]
            assert found.distance == pytest.approx(distances[found.row], abs=1e-6)
    assert found_rows(matching) != found_rows(world.match(world.features(queries), k=7))


# The model


def test_the_recorded_model_is_used(world: World) -> None:
    """Other runs with the same weights are not searched."""
    world.add_checkpoint("later", world.checkpoint.read_bytes())
    assert world.match(world.features(world.embeddings)).checkpoint == world.checkpoint


def test_another_model_is_refused_with_both_names(world: World) -> None:
    """What the user gives must be the gallery's model."""
    other = world.add_checkpoint("other", b"another model")
    with pytest.raises(CheckpointError) as refused:
        world.match(world.features(world.embeddings), checkpoint=other.parent)
    for words in (str(world.checkpoint), str(other), "another model", "can't be compared"):
        assert words in str(refused.value)


@pytest.mark.parametrize("replaced", [True, False], ids=["trained on", "gone"])
def test_a_model_that_is_not_to_be_found(world: World, replaced: bool) -> None:
    """Pictures can't be embedded without it; the error names it and says what to do."""
    if replaced:
        world.checkpoint.write_bytes(b"trained on")
    else:
        world.checkpoint.unlink()
    with pytest.raises(CheckpointError, match="as --checkpoint") as refused:
        world.match(world.folder / "images")
    assert str(world.checkpoint) in str(refused.value)
    assert ("is another model" in str(refused.value)) == replaced
    matching = world.match(world.features(world.embeddings))
    assert matching.checkpoint is None
    assert "the gallery's model was not found" in matching.notes[-1]


def test_features_of_another_model_are_refused(world: World) -> None:
    """Their record names it; both names are told."""
    queries = world.write(
        "q.npy", world.embeddings, fingerprint="cd" * 32, checkpoint="runs/other/model.safetensors"
    )
    with pytest.raises(CheckpointError) as refused:
        world.match(queries)
    for words in (str(world.checkpoint), "runs/other/model.safetensors", "cdcdcdcdcdcd"):
        assert words in str(refused.value)


def test_features_without_a_record_can_not_be_checked(world: World) -> None:
    """Nothing says which model made them; the user is told so."""
    assert "can't be checked" in world.match(world.features(world.embeddings)).notes[0]


# What scores mean


def test_without_a_calibration_there_is_no_verdict(world: World) -> None:
    """A note says how to get one."""
    matching = world.match(world.features(world.embeddings[:1]))
    assert matching.decision is None
    assert {found.verdict for found in matching.queries[0].matches} == {None}
    assert f"`airnet evaluate {world.checkpoint.parent} --calibrate`" in matching.notes[-1]


@pytest.mark.parametrize(
    ("changes", "threshold", "far"),
    [
        pytest.param({}, 0.5, 1e-3, id="default rate"),
        pytest.param({"far": 0.01}, 0.25, 0.01, id="chosen rate"),
        pytest.param({"heads": ["A2"]}, 0.75, 1e-3, id="one head"),
        pytest.param({"heads": ["I", "A2", "A1"]}, 0.5, 1e-3, id="all heads by name"),
        pytest.param({"threshold": 0.0}, 0.0, None, id="threshold of the user"),
    ],
)
def test_verdicts(world: World, changes, threshold, far) -> None:
    """From the threshold on it is the same person, below it nobody knows."""
    path = world.calibrate()
    matching = world.match(world.features(world.embeddings[:4] + 0.2), k=40, **changes)
    assert matching.decision.threshold == threshold
    assert matching.decision.far == far
    assert matching.decision.calibration == (None if far is None else path)
    for query in matching.queries:
        for found in query.matches:
            assert found.verdict == ("same person" if found.score >= threshold else "unknown")
    verdicts = {found.verdict for query in matching.queries for found in query.matches}
    assert verdicts == {"same person", "unknown"}
    assert not [text for text in matching.notes if "no verdict" in text]


@pytest.mark.parametrize(
    ("calibration", "changes", "reason"),
    [
        pytest.param({"fingerprint": "ab" * 32}, {}, "is of another model", id="trained on since"),
        pytest.param({"flip": True}, {}, "differ in flip", id="flip"),
        pytest.param({"normalize_heads": True}, {}, "differ in normalize_heads", id="length"),
        pytest.param({}, {"heads": ["A1", "I"]}, "heads A1, I together", id="two heads"),
        pytest.param({}, {"far": 0.002}, "no false-accept rate 0.002; .* has 0.001, 0.01",
                     id="rate"),
    ],
)  # fmt: skip
def test_a_calibration_that_does_not_fit(world: World, calibration, changes, reason) -> None:
    """It gives no verdict; asked for a rate, it is an error."""
    world.calibrate(**calibration)
    queries = world.features(world.embeddings)
    if "far" not in changes:
        matching = world.match(queries, **changes)
        assert matching.decision is None
        assert reason in matching.notes[-1]
    with pytest.raises(CheckpointError, match=reason):
        world.match(queries, **{"far": 0.01, **changes})


# What is written


def test_the_table(world: World) -> None:
    """A row for each match, with the gallery's columns; what was there is replaced."""
    out = world.folder / "new" / "out.csv"
    matching = world.match(world.features(world.embeddings[:2]), table=out, threshold=0.5, k=2)
    with out.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [
        "query", "rank", "row", "path", "score", "verdict", "person_id", "camera_id",
    ]  # fmt: skip
    flat = [(q.query, m) for q in matching.queries for m in q.matches]
    assert len(rows) == len(flat) == 4
    for row, (name, found) in zip(rows, flat, strict=True):
        assert (row["query"], row["rank"]) == (name, str(found.rank))
        assert (row["path"], row["verdict"]) == (str(found.path), found.verdict)
        assert float(row["score"]) == found.score
        assert row["person_id"] == found.columns["person_id"]


def test_picture_and_page(world: World) -> None:
    """Queries whose images are known are drawn with their matches."""
    queries = world.write("q.npy", world.embeddings[:2])
    picture, page = world.folder / "out.png", world.folder / "out.html"
    world.match(queries, picture=picture, page=page, threshold=0.9, where=["camera_id!=1"])
    with Image.open(picture) as sheet:
        assert sheet.width > 500
        assert sheet.height > 400
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 12
    assert "camera_id!=1" in text
    assert "Scores from 0.9000 mean the same person" in text
    assert not list(world.folder.glob(".*part"))


def test_page_in_a_browser(world: World, browser: Any) -> None:
    """The page opens without a complaint, shows every picture, and a click opens a list."""
    queries, page = world.write("q.npy", world.embeddings[:2]), world.folder / "out.html"
    world.match(queries, page=page)
    browser.open(page, width_px=800, height_px=600, scheme="light")
    assert browser.complaints() == []
    assert browser.run(
        "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    assert "there is no verdict" in browser.run("return document.body.innerText")
    browser.click("summary")
    assert browser.run("return document.querySelectorAll('details[open]').length") == 1


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        pytest.param({"picture": Path("out.txt")}, UsageError, "not a picture's name",
                     id="suffix"),
        pytest.param({"picture": Path("out.png")}, UsageError, "has no image to draw",
                     id="no image"),
        pytest.param({"page": Path("out.html")}, UsageError, "has no image to draw", id="page"),
        pytest.param({"threshold": 0.5, "far": 0.01}, UsageError, "give one of them", id="both"),
        pytest.param({"threshold": 1.5}, UsageError, "1.5 is not a cosine", id="threshold"),
        pytest.param({"threshold": float("nan")}, UsageError, "is not a cosine", id="NaN"),
        pytest.param({"far": 0.01}, CheckpointError, "--far 0.01: the model has no calibration",
                     id="no calibration"),
        pytest.param({"heads": ["B"]}, UsageError, "head B: .* has A1, A2, I", id="head"),
        pytest.param({"heads": []}, UsageError, r"head \(none\)", id="no head"),
        pytest.param({"where": ["camera=1"]}, UsageError, "has no column camera", id="column"),
        pytest.param({"where": ["camera_id"]}, UsageError, "is not a column", id="no condition"),
        pytest.param({"where": ["camera_id>2"]}, DataError, "no row of the gallery fulfils",
                     id="nothing left"),
        pytest.param({"where": ["person_id<4"], "rerank": True}, UsageError,
                     "and 20 rows are searched", id="too few to re-rank"),
        pytest.param({"gallery": Path("absent.npy")}, DataError, "does not exist", id="gallery"),
        pytest.param({"checkpoint": Path("absent")}, CheckpointError, "does not exist",
                     id="checkpoint"),
    ],
)  # fmt: skip
def test_what_can_not_be_carried_out(world: World, monkeypatch, changes, kind, message) -> None:
    """One line that says what was wrong; nothing is written."""
    monkeypatch.chdir(world.folder)
    queries = world.features(world.embeddings[:1])
    before = sorted(world.folder.rglob("*"))
    with pytest.raises(kind, match=message) as refused:
        world.match(queries, **changes)
    assert "\n" not in str(refused.value)
    assert sorted(world.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        pytest.param(np.ones((2, 7)), "have 7 columns and gallery .* 24", id="width"),
        pytest.param(np.ones((2, 24), int), "holds int64", id="integers"),
        pytest.param(np.ones((2, 2, 24)), r"of the shape \(2, 2, 24\)", id="no matrix"),
        pytest.param(np.ones((0, 24)), r"of the shape \(0, 24\)", id="no row"),
        pytest.param(np.array([{}], dtype=object), "can't be read as a NumPy array", id="objects"),
        pytest.param(np.zeros((1, 24)), "query row 0 .* is zero", id="zero"),
        pytest.param(np.full((1, 24), np.nan), "query row 0 .* holds NaN", id="NaN"),
    ],
)
def test_features_that_can_not_be_used(world: World, matrix, message) -> None:
    """What is wrong with a feature file is said in one line."""
    with pytest.raises(DataError, match=message):
        world.match(world.features(matrix))


def test_features_embedded_in_another_way(world: World) -> None:
    """The same model, but other heads or flips: not the same numbers."""
    queries = world.write("q.npy", world.embeddings, flip=True, heads={"A1": [0, 24]})
    with pytest.raises(UsageError, match="differ in heads and flip"):
        world.match(queries)


def test_too_much_for_a_picture(world: World) -> None:
    """A sheet that nobody can look at is refused before the work."""
    many = world.write("many.npy", np.concatenate([world.embeddings, world.embeddings]))
    with pytest.raises(UsageError, match="80 queries are too many"):
        world.match(many, picture=world.folder / "out.png")
    with pytest.raises(UsageError, match="-k 51 is too long"):
        world.match(many, page=world.folder / "out.html", k=51)


def test_a_place_that_can_not_be_written(world: World) -> None:
    """A folder in the way is told in one line."""
    (world.folder / "out.csv").mkdir()
    with pytest.raises(AirnetError, match=r"can't write '.*out\.csv'"):
        world.match(world.features(world.embeddings), table=world.folder / "out.csv")


# With a network


@pytest.fixture(scope="module")
def embedded(untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of six drawn images, by a network that was never trained: heads A1 and I, flip."""
    folder = tmp_path_factory.mktemp("embedded")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in "abcdef":
        blocks = Image.fromarray(random.integers(0, 256, (6, 3, 3), np.uint8))
        blocks.resize((48, 96)).save(folder / "images" / f"{name}.png")
    embed(
        EmbedOptions(
            inputs=(folder / "images",),
            data_root=folder,
            output=folder / "gallery.npy",
            model=untrained_run,
            runs_root=folder,
            heads=("A1", "I"),
            flip=True,
            device="cpu",
        )
    )
    return folder / "gallery.npy"


def test_pictures_go_through_the_gallery_s_model(embedded: Path, tmp_path: Path) -> None:
    """A file and a folder give the matches of their rows in the gallery: heads and flip are its."""
    images = sorted((embedded.parent / "images").iterdir())
    world = World(tmp_path)

    matching = world.match(images[4], embedded.parent / "images", gallery=embedded, k=3)

    assert [query.image for query in matching.queries] == [images[4], *images]
    assert matching.queries[0] == matching.queries[5]
    stored = np.load(embedded)
    rows, scores = obvious(stored, stored, 3)
    assert found_rows(matching)[1:] == rows
    np.testing.assert_allclose(found_scores(matching)[1:], scores, atol=1e-5)
    assert matching.heads == ("A1", "I")


def test_a_picture_that_is_none(embedded: Path, tmp_path: Path) -> None:
    """The file is named."""
    (tmp_path / "q.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"q\.jpg' can't be read"):
        World(tmp_path).match(tmp_path / "q.jpg", gallery=embedded)
