"""prepare-data folder end to end: one's own images, with and without cameras."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airnet_cli.config.presets import load_preset
from airnet_cli.core.data.manifest import SplitCounts, load_prepared
from airnet_cli.core.retrieval.protocol import check_scorable
from airnet_cli.errors import DataError, EvaluationError, UsageError
from airnet_cli.workflows.prepare_data import prepare_folder
from airnet_cli.workflows.preparing import PrepareOptions
from airnet_cli.workflows.train import TrainOptions, train

PATTERN = "{person_id}_c{camera_id}_*"


def lay(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (90, 120, 60)).save(root / file)
    return root


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Four people by two cameras, two images each: 0007, 0008, 0009, 0010."""
    files = [
        f"00{n:02}_c{camera}_{i}.png" for n in range(7, 11) for camera in (1, 2) for i in (1, 2)
    ]
    return lay(tmp_path / "crops", *files)


@pytest.fixture
def foldered(tmp_path: Path) -> Path:
    """Four people with three images each, in folders; no cameras."""
    files = [f"{name}/{i}.png" for name in ("adam", "cain", "eve", "seth") for i in (1, 2, 3)]
    return lay(tmp_path / "people", *files)


def prepare(source: Path, tmp_path: Path, **changes: Any):
    arguments = {"pattern": None, "test_share": 0.5, "seed": 1, "workers": 0} | changes
    options = {
        key: arguments.pop(key)
        for key in ("workers", "name", "allow_partial", "verify")
        if key in arguments
    }
    return prepare_folder(
        source, PrepareOptions(data_root=tmp_path / "data", **options), **arguments
    )


def test_names_with_cameras(named: Path, tmp_path: Path) -> None:
    """Ids that are numbers stay; each camera of a test person gives a query; all can be scored."""
    prepared = prepare(named, tmp_path, pattern=PATTERN)
    assert (prepared.name, prepared.root, prepared.published) == ("crops", named, None)
    assert prepared.notes == ()
    assert prepared.images_verified == 16
    assert prepared.counts == {
        "train": SplitCounts(images=8, ids=2, cameras=2),
        "query": SplitCounts(images=4, ids=2, cameras=2),
        "gallery": SplitCounts(images=4, ids=2, cameras=2),
    }
    manifest = load_prepared(tmp_path / "data", "crops")
    assert {record.person_id for record in manifest.records} == {7, 8, 9, 10}
    assert manifest.split_rule == (
        "names like {person_id}_c{camera_id}_*; 0.5 of the identities to test, drawn with seed 1"
    )
    assert (manifest.person_names, manifest.camera_names) == ({}, {})
    check_scorable(manifest)


def test_folders_without_cameras(foldered: Path, tmp_path: Path) -> None:
    """People are numbered, their names kept; the preparation says how to score without cameras."""
    prepared = prepare(foldered, tmp_path, name="family")
    assert prepared.counts["query"] == SplitCounts(images=2, ids=2, cameras=1)
    assert prepared.counts["gallery"] == SplitCounts(images=4, ids=2, cameras=1)
    assert prepared.notes == (
        "people were numbered from 1 to 4; the manifest's header has their names",
        "query and gallery are by one camera, and images by the query's own camera are left out of "
        "scores: run airnet evaluate --no-camera-filter, and airnet train --preset NAME --set "
        "evaluation.camera_filter=false",
    )
    manifest = load_prepared(tmp_path / "data", "family")
    assert manifest.person_names == {1: "adam", 2: "cain", 3: "eve", 4: "seth"}
    for record in manifest.records:
        assert manifest.person_names[record.person_id] == record.path.split("/")[0]
    check_scorable(manifest, camera_filter=False)
    with pytest.raises(
        EvaluationError, match=r"'family': no query .* evaluate with --no-camera-filter"
    ):
        check_scorable(manifest)


def test_the_same_again(named: Path, tmp_path: Path) -> None:
    """A seed gives the same manifest, byte for byte; another seed another one."""
    first, again, other = (
        prepare(named, tmp_path, pattern=PATTERN, seed=seed).manifest.read_bytes()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.split(b"\n", 1)[1] != other.split(b"\n", 1)[1]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in a folder"])
def test_zip(foldered: Path, tmp_path: Path, wrapped: bool) -> None:
    """A zip is unpacked under the data root; a folder around everybody is not a person."""
    archive = tmp_path / "family.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(foldered.rglob("*.png")):
            opened.write(path, path.relative_to(foldered.parent if wrapped else foldered))
    prepared = prepare(archive, tmp_path)
    assert prepared.name == "family"
    assert sum(count.images for count in prepared.counts.values()) == 12
    assert prepared.root == tmp_path / "data/family/images" / ("people" if wrapped else "")
    manifest = load_prepared(tmp_path / "data", "family")
    assert all((manifest.root / record.path).is_file() for record in manifest.records)


def test_images_of_which_nothing_is_known(named: Path, tmp_path: Path) -> None:
    """They are named; with the option they are left out."""
    lay(named, "group photo.png")
    with pytest.raises(DataError, match=r"1 images under .* do not fit .*: group photo\.png; move"):
        prepare(named, tmp_path, pattern=PATTERN)
    prepared = prepare(named, tmp_path, pattern=PATTERN, allow_partial=True)
    assert prepared.notes[0].startswith("left out: 1 images under ")
    assert prepared.images_verified == 16


def test_people_whom_one_camera_saw(named: Path, tmp_path: Path) -> None:
    """They go to the gallery as they are, with a note."""
    lay(named, "0011_c1_1.png", "0011_c1_2.png")
    prepared = prepare(named, tmp_path, pattern=PATTERN, test_share=1)
    assert prepared.notes[0] == (
        "1 of 5 test identities have no second camera (or image) to be found by: "
        "they are in the gallery only"
    )
    manifest = load_prepared(tmp_path / "data", "crops")
    assert {r.split for r in manifest.records if r.person_id == 11} == {"gallery"}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        pytest.param({"pattern": "{who}_*"}, UsageError, "has {who}, and there are", id="pattern"),
        pytest.param({"pattern": "x{person_id}"}, DataError, "16 images under .* do not fit",
                     id="fits nothing"),
        pytest.param({}, DataError, "16 images under .* lie in no folder of a person",
                     id="no folders"),
    ],
)  # fmt: skip
def test_bad_requests(
    named: Path, tmp_path: Path, changes: dict[str, Any], kind: type, message: str
) -> None:
    """Each is one line, and leaves nothing behind."""
    with pytest.raises(kind, match=message) as caught:
        prepare(named, tmp_path, **changes, allow_partial=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("camera_filter", [True, False])
def test_training_without_cameras(
    foldered: Path, tmp_path: Path, tiny_overrides: tuple[str, ...], camera_filter: bool
) -> None:
    """Refused before it begins, with the setting that it needs; with it, scores say so."""
    prepare(foldered, tmp_path, name="tiny")
    overrides = [
        *tiny_overrides,
        "training.epochs=1",
        "training.identities_per_batch=2",
        "training.learning_rate_epochs=[]",
        f"evaluation.camera_filter={str(camera_filter).lower()}",
    ]

    def run():
        roots = {"data_root": tmp_path / "data", "runs_root": tmp_path / "runs"}
        return train(load_preset("demo", overrides), "tiny", TrainOptions(device="cpu", **roots))

    if camera_filter:
        with pytest.raises(EvaluationError, match=r"--set evaluation\.camera_filter=false"):
            run()
        assert not (tmp_path / "runs").exists()
    else:
        scores = json.loads((run().run / "scores.json").read_text())
        assert scores["protocol"]["camera_filter"] is False
        assert scores["queries"]["counted"] == 2
