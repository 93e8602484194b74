"""Sheets, JSON and page of `visualize`, judged by loops; and every request that is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from airnet_cli.config.presets import load_preset
from airnet_cli.core.checkpoint import write_checkpoint
from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.errors import AirnetError, CheckpointError, DataError, UsageError
from airnet_cli.workflows import visualize as workflow
from airnet_cli.workflows.build import build_network
from airnet_cli.workflows.embed import embed
from airnet_cli.workflows.embed_parts import EmbedOptions
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.visualize import VisualizeOptions, visualize


def write_run(folder: Path, *overrides: str) -> Path:
    """A finished run of an untrained network of `tiny`'s size."""
    preset = load_preset(
        "demo", ("data.name=tiny", "data.height_px=64", "data.width_px=32", *overrides)
    )
    torch.manual_seed(len(overrides))
    folder.mkdir(parents=True)
    write_checkpoint(
        folder / "model.safetensors",
        build_network(preset, identities=5),
        preset=preset.model_dump(mode="json"),
        height_px=64,
        width_px=32,
        identities=(3, 5, 7, 11, 1203),
        training={},
    )
    for name in ("preset.json", "scores.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with `runs/new` (airnet) and `others/baseline`."""
    root = tmp_path_factory.mktemp("visualize")
    write_run(root / "runs" / "new")
    write_run(root / "others" / "baseline", "model.variant=baseline")
    return root


@pytest.fixture
def show(root, tiny_data_root, tmp_path, monkeypatch):
    """Return `visualize` with everything stated that a test does not state, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*sheets, **stated):
        request = {
            "images": [],
            "against": None,
            "compare": None,
            "gallery": None,
            "checkpoint": None,
            "runs_root": root / "runs",
            "data_name": None,
            "data_root": tiny_data_root,
            "count": None,
            "top": 10,
            "output": None,
            "html": None,
            "device": "cpu",
            "batch_size": 64,
            "workers": 0,
        }
        on_model = stated.pop("on_model", lambda model: None)
        return visualize(VisualizeOptions(sheets=sheets, **(request | stated)), on_model=on_model)

    return call


@pytest.fixture
def seen(monkeypatch):
    """What is handed to the drawing functions, which draw nothing here."""
    rows: dict[str, list] = {"saliency": [], "ranked": []}

    def keep(kind):
        def draw(given, *, title):
            rows[kind] += given
            return Image.new("RGB", (1, 1))

        return draw

    monkeypatch.setattr(workflow, "draw_saliency_sheet", keep("saliency"))
    monkeypatch.setattr(workflow, "draw_ranked_lists", keep("ranked"))
    return rows


@pytest.fixture
def tiny(tiny_data_root):
    return load_prepared(tiny_data_root, "tiny")


def test_gradcam_alone_is_enough(show, tmp_path, root):
    """Without anything else: the newest finished run, queries of its data set, gradcam.png."""
    told = []
    done = show("gradcam", on_model=told.append)
    assert [model.run for model in told] == [root / "runs" / "new"]
    assert done.pictures == (Path("gradcam.png"),)
    assert [path.name for path in tmp_path.iterdir()] == ["gradcam.png"]
    with Image.open("gradcam.png") as picture:
        assert picture.width > 4 * 132
        assert picture.height > 4 * 256


def test_gradcam_shows_queries_of_different_people(show, seen, tiny):
    """Four people, a column for each head, the identity by the data set's own number."""
    show("gradcam")
    person_of = {tiny.root / record.path: record.person_id for record in tiny.split("query")}
    rows = seen["saliency"]
    assert len({person_of[row.image] for row in rows}) == len(rows) == 4
    for row in rows:
        assert [panel.heading for panel in row.panels] == ["A1", "A2", "I"]
        for panel in row.panels:
            assert panel.heat.shape == (4, 2)
            assert not panel.is_signed
            person, _, share = panel.caption.partition(":")
            assert person in {f"person {number}" for number in (3, 5, 7, 11, 1203)}
            assert "%" in share


@pytest.mark.parametrize(("count", "people"), [(1, 1), (3, 3), (4, 4), (6, 4)])
def test_count_of_queries(show, seen, tiny, count, people):
    """As many different people as there are; then more pictures of them, none twice."""
    show("gradcam", count=count)
    person_of = {tiny.root / record.path: record.person_id for record in tiny.split("query")}
    images = [row.image for row in seen["saliency"]]
    assert len(set(images)) == count
    assert len({person_of[image] for image in images}) == people


def test_compare_adds_the_other_models_columns(show, seen, root):
    """Columns are named by what tells the models apart."""
    show("gradcam", compare=root / "others" / "baseline", count=1)
    (row,) = seen["saliency"]
    assert [(panel.heading, panel.model) for panel in row.panels] == [
        ("A1", "airnet"),
        ("A2", "airnet"),
        ("I", "airnet"),
        ("A1", "baseline"),
    ]


def test_two_runs_of_one_variant_are_named_by_their_folders(show, seen, root, tmp_path):
    """Where variant and backbone are the same, the folders' names remain."""
    other = write_run(tmp_path / "again")
    show("gradcam", compare=other, count=1)
    assert {panel.model for panel in seen["saliency"][0].panels} == {"new", "again"}


def test_against_explains_both_pictures(show, seen, tiny, root):
    """First in the one, then in the other; the same cosine, which is that of the heads' slices."""
    image, other = (tiny.root / record.path for record in tiny.split("query")[:2])
    show("gradcam", images=[image], against=other)
    there, back = seen["saliency"]
    assert (there.image, back.image) == (image, other)
    embedder = Embedder.load(root / "runs" / "new", device="cpu")
    one, two = embedder([image, other])
    for panel, panel_back in zip(there.panels, back.panels, strict=True):
        part = embedder.heads[panel.heading]
        lengths = np.linalg.norm(one[part]) * np.linalg.norm(two[part])
        words, _, value = panel.caption.partition(" ")
        assert words == "cosine"
        assert float(value) == pytest.approx(one[part] @ two[part] / lengths, abs=6e-4)
        assert panel_back.caption == panel.caption


def test_attention_is_signed(show, seen):
    """One column: the interaction head's."""
    show("attention", count=2)
    assert [[panel.heading for panel in row.panels] for row in seen["saliency"]] == [["I"], ["I"]]
    assert all(panel.is_signed for row in seen["saliency"] for panel in row.panels)


def obvious_state(query, record):
    """The protocol in words of one syllable."""
    if record.person_id == -1:
        return "junk"
    if record.person_id != query.person_id:
        return "wrong"
    return "ignored" if record.camera_id == query.camera_id else "right"


def test_ranking_is_the_obvious_one(show, root, tiny):
    """Each list is a sort by cosine, states and ranks by the protocol; in JSON beside the picture.

    The whole embedding and each head have their own.
    """
    done = show("ranking", count=2, top=25, output=Path("lists.png"))
    assert done.rankings == Path("lists.json")
    written = json.loads(done.rankings.read_text(encoding="utf-8"))
    assert written["format"] == "airnet-ranking"
    assert len(written["queries"]) == 2
    embedder = Embedder.load(root / "runs" / "new", device="cpu")
    gallery = tiny.split("gallery")
    embeddings = embedder([tiny.root / record.path for record in gallery])
    queries = {str(tiny.root / record.path): record for record in tiny.split("query")}
    for listed in written["queries"]:
        query = queries[listed["query"]]
        assert (listed["person_id"], listed["camera_id"]) == (query.person_id, query.camera_id)
        assert list(listed["rankings"]) == ["whole", "A1", "A2", "I"]
        for part, matches in listed["rankings"].items():
            columns = slice(None) if part == "whole" else embedder.heads[part]
            one = embedder([Path(listed["query"])])[0, columns].astype(np.float64)
            cosines = [
                one @ row / np.linalg.norm(one) / np.linalg.norm(row)
                for row in embeddings[:, columns].astype(np.float64)
            ]
            best = sorted(cosines, reverse=True)[:25]
            assert [match["score"] for match in matches] == pytest.approx(best, abs=1e-5)
            rank = 0
            for match in matches:
                record = gallery[match["row"]]
                assert cosines[match["row"]] == pytest.approx(match["score"], abs=1e-5)
                assert match["path"] == str(tiny.root / record.path)
                assert match["state"] == obvious_state(query, record)
                if match["state"] in ("junk", "ignored"):
                    assert match["rank"] is None
                else:
                    rank += 1
                    assert match["rank"] == rank
    states = {m["state"] for q in written["queries"] for m in q["rankings"]["whole"]}
    assert {"junk", "wrong"} <= states


def test_ranking_of_one_head_has_one_list(show, seen, root):
    """A single head is the whole embedding: not shown twice."""
    show("ranking", count=1, top=3, checkpoint=root / "others" / "baseline")
    assert len(seen["ranked"]) == 1


def test_a_stranger_has_no_right_answers(show, tmp_path):
    """Of a picture that is not in the data set nobody knows who it is: only junk is known."""
    stranger = tmp_path / "stranger.png"
    Image.new("RGB", (40, 90), "teal").save(stranger)
    done = show("ranking", images=[stranger], top=50)
    (listed,) = json.loads(done.rankings.read_text(encoding="utf-8"))["queries"]
    assert listed["person_id"] is None
    assert {match["state"] for match in listed["rankings"]["whole"]} <= {"unknown", "junk"}


def embed_gallery(root, data_root, output, **stated):
    """The gallery of `tiny` by `airnet embed`."""
    request = {
        "data_name": "tiny",
        "split": "gallery",
        "data_root": data_root,
        "output": output,
        "model": root / "runs" / "new",
        "runs_root": root / "runs",
        "batch_size": 64,
        "device": "cpu",
    }
    embed(EmbedOptions(**(request | stated)))


def test_a_gallery_file_gives_the_same_lists(show, root, tiny_data_root, tmp_path):
    """What `airnet embed` wrote is ranked as the data set's gallery is."""
    embed_gallery(root, tiny_data_root, tmp_path / "gallery.npy")
    read = {}
    for name, gallery in (("data", None), ("file", tmp_path / "gallery.npy")):
        done = show("ranking", count=2, top=20, gallery=gallery, output=Path(f"{name}.png"))
        queries = json.loads(done.rankings.read_text(encoding="utf-8"))["queries"]
        read[name] = [
            (number, part, match["rank"], match["score"])
            for number, query in enumerate(queries)
            for part, matches in query["rankings"].items()
            for match in matches
            if match["state"] != "junk" and match["rank"] is not None and match["rank"] <= 5
        ]
    # Junk is in the data set and not in the file; it takes places in the first list, but no ranks.
    assert [one[:3] for one in read["data"]] == [other[:3] for other in read["file"]]
    for one, other in zip(read["data"], read["file"], strict=True):
        assert one[3] == pytest.approx(other[3], abs=1e-5)


@pytest.mark.parametrize(
    ("stated", "checkpoint", "message"),
    [
        ({}, "others/baseline", "was embedded by another model"),
        ({"heads": ["A1"]}, None, "with --heads or --flip"),
        ({"flip": True}, None, "with --heads or --flip"),
    ],
    ids=["another model", "one head", "flip"],
)
def test_a_gallery_that_does_not_fit_is_refused(
    show, root, tiny_data_root, tmp_path, stated, checkpoint, message
):
    """Never a list of scores that mean nothing."""
    embed_gallery(root, tiny_data_root, tmp_path / "gallery.npy", **stated)
    with pytest.raises(CheckpointError, match=message):
        show(
            "ranking",
            gallery=tmp_path / "gallery.npy",
            checkpoint=checkpoint and root / checkpoint,
        )


def test_html_alone_writes_the_page_alone(show, tmp_path, root):
    """All sheets are on it, by name; with -o there are pictures as well."""
    done = show("gradcam", "attention", "ranking", html=Path("report.html"), count=1, top=3)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (done.pictures, done.report) == ((), Path("report.html"))
    page = Path("report.html").read_text(encoding="utf-8")
    for words in ("Grad-CAM of the identity", "Attention of the", "Ranked lists", "head A2"):
        assert words in page
    assert page.count("<details") == 4
    assert str(root / "runs" / "new") in page
    both = show("gradcam", html=Path("again.html"), output=Path("pictures"), count=1)
    assert both.pictures == (Path("pictures/gradcam.png"),)
    assert both.pictures[0].is_file()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a.png"])
def test_picture_has_the_type_of_its_name(show, name):
    """Whatever Pillow may call the temporary file."""
    show("attention", count=1, output=Path(name))
    with Image.open(name) as picture:
        assert picture.format == {"a.jpg": "JPEG", "a.JPEG": "JPEG", "a.webp": "WEBP"}.get(
            name, "PNG"
        )


def test_a_folder_stands_for_its_images(show, seen, tiny):
    """In the order of their names."""
    show("gradcam", images=[tiny.root / "query"])
    names = [row.image.name for row in seen["saliency"]]
    assert names == sorted(path.name for path in (tiny.root / "query").iterdir())


REFUSED = {
    "nothing": ((), {}, UsageError, "say what to show"),
    "against": (("ranking",), {"against": Path("a.jpg")}, UsageError, "--against belongs to"),
    "compare": (("attention",), {"compare": Path("run")}, UsageError, "--compare belongs to"),
    "gallery": (("gradcam",), {"gallery": Path("g.npy")}, UsageError, "--gallery belongs to"),
    "count": (("gradcam",), {"images": [Path("a")], "count": 2}, UsageError, "--count is for"),
    "many": (("gradcam",), {"count": 65}, UsageError, "65 images are too many"),
    "gone": (("gradcam",), {"images": [Path("a.jpg")]}, DataError, "'a.jpg' does not exist"),
    "against folder": (("gradcam",), {"against": Path()}, DataError, "is a folder"),
    "type": (("gradcam",), {"output": Path("a.gif")}, UsageError, "not a picture's name"),
    "two": (("gradcam", "ranking"), {"output": Path("a.png")}, UsageError, "one picture, and 2"),
    "data": (("gradcam",), {"data_name": "none"}, DataError, "no data set 'none'"),
    "run": (("gradcam",), {"checkpoint": Path("none")}, CheckpointError, "does not exist"),
    "compared": (("gradcam",), {"compare": Path("none")}, CheckpointError, "does not exist"),
}


@pytest.mark.parametrize(("sheets", "stated", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(show, tmp_path, sheets, stated, kind, message):
    """One line that says what to do, and nothing written."""
    with pytest.raises(kind, match=message) as caught:
        show(*sheets, **stated)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_attention_without_an_interaction_head(show, root):
    """The message names variants that have one."""
    with pytest.raises(UsageError, match=r"variant .baseline. has no interaction head.*airnet"):
        show("attention", checkpoint=root / "others" / "baseline")


@pytest.mark.parametrize("content", ['{"format": "airnet-gallery"}', "[1]", "text"])
def test_json_of_another_kind_is_not_overwritten(show, content):
    """`-o gallery.png` must not cost the gallery its record."""
    Path("gallery.json").write_text(content)
    with pytest.raises(UsageError, match="holds something else"):
        show("ranking", count=1, output=Path("gallery.png"))
    assert Path("gallery.json").read_text() == content


def test_own_files_are_replaced(show):
    """The same command twice is no error."""
    for _ in range(2):
        show("ranking", count=1, top=2)
    assert Path("ranking.json").is_file()


def test_images_need_no_data_set(show, tmp_path):
    """Where images are named, Grad-CAM works without prepared data; without images it says how."""
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 90), "teal").save(image)
    show("gradcam", images=[image], data_root=tmp_path)
    with pytest.raises(AirnetError, match="no data set 'tiny'"):
        show("gradcam", data_root=tmp_path)
