"""Commands are killed (SIGKILL) and gone on with: what comes out is as if nothing had been, to the
byte.

At random moments, seeded; and before each single operation that changes a file, where all that
could go wrong goes wrong. `make soak` does more of both (`AIRNET_KILLS`).
"""

import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.data.manifest import load_prepared
from airnet_cli.errors import DataError

pytestmark = pytest.mark.slow

CHOSEN = (
    "training.epochs=2",
    "training.ema_decay=0.9",
    "training.val_ids=2",
    "training.identities_per_batch=3",
    "evaluation.select=val",
    "evaluation.every=1",
)
"""The most that a run keeps: an average of its weights, and the best epoch so far."""

RUNS = {
    "plain": ("training.epochs=3", "training.workers=1", "evaluation.every=2"),
    "chosen": CHOSEN,
}


@pytest.fixture
def train_words(
    scarce_data_root: Path, tiny_overrides: tuple[str, ...]
) -> Callable[..., list[Any]]:
    """The words of a training under `runs_root`, or of going on with what is there."""

    def words(runs_root: Path, overrides: Iterable[str]) -> list[Any]:
        where = ["--data-root", scarce_data_root]
        runs = [path for path in runs_root.glob("*") if (path / "preset.json").exists()]
        if runs:
            return ["train", "--resume", runs[0], *where]
        shutil.rmtree(runs_root, ignore_errors=True)
        sets = [word for each in (*tiny_overrides, *overrides) for word in ("--set", each)]
        return ["train", "-p", "demo", *sets, "--runs-root", runs_root, *where]

    return words


def files_of_run(runs_root: Path) -> dict[str, Any]:
    """What two runs of one preset share; times and the folder's name are their own."""
    (run,) = runs_root.iterdir()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    files = {
        "log": json.dumps(lines).replace(str(run), "RUN"),
        "scores": (run / "scores.json").read_text().replace(str(run), "RUN"),
        "preset": (run / "preset.json").read_text(),
    }
    for path in run.iterdir():
        if path.suffix == ".safetensors":
            files[path.name] = path.read_bytes()
        # `.lock` locks nothing once the process that made it was killed.
        elif path.name not in ("log.jsonl", "scores.json", "preset.json", ".lock"):
            assert path.name.startswith("events.out"), f"{path.name} was left behind"
    return files


@pytest.mark.soak
def test_killed_training_ends_as_the_undisturbed(
    nursery, kills, train_words, tmp_path, record_property
) -> None:
    """Killed at random moments until it has been often enough: weights, training state, log and
    scores are those of the run that nobody disturbed.
    """
    draw = random.Random(6)
    overrides = RUNS["plain"]
    whole = nursery.run(*train_words(tmp_path / "whole", overrides))
    assert whole.code == 0, whole.output
    expected = files_of_run(tmp_path / "whole")
    killed = runs = 0
    while killed < kills:
        runs += 1
        root = tmp_path / f"killed-{runs}"
        while True:
            seconds = draw.uniform(0, 0.8 * whole.seconds)
            ended = nursery.kill_after(seconds, *train_words(root, overrides))
            killed += ended.was_killed
            if not ended.was_killed or killed == kills:
                break
        if ended.was_killed:
            ended = nursery.run(*train_words(root, overrides))
        finished(ended)
        assert files_of_run(root) == expected
    record_property("killed", f"{killed} times in {runs} runs")


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.soak), "chosen"])
def test_training_survives_a_kill_between_any_two_files(
    nursery, kills, train_words, tmp_path, name
) -> None:
    """Killed before the n-th time that a file is opened for writing, renamed or removed."""
    overrides = RUNS[name]
    root = tmp_path / "whole"
    whole = nursery.run(*train_words(root, overrides), folder=str(tmp_path))
    assert whole.code == 0, whole.output
    expected = files_of_run(root)
    for moment in chosen_moments(whole.operations, max(1, kills // 4)):
        root = tmp_path / f"killed-{moment}"
        ended = nursery.run(*train_words(root, overrides), folder=str(tmp_path), kill_at=moment)
        assert ended.was_killed, ended.output
        ended = nursery.run(*train_words(root, overrides))
        finished(ended)
        assert files_of_run(root) == expected, f"killed at {moment}"
        shutil.rmtree(root)


def chosen_moments(count: int, wanted: int) -> list[int]:
    """`wanted` of the moments 1 to `count`, drawn by a fixed seed; all where enough are wanted."""
    assert count > 3
    moments = range(1, count + 1)
    return list(moments) if wanted >= 10 else sorted(random.Random(count).sample(moments, wanted))


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Forty small pictures, two of them broken."""
    folder = tmp_path / "crops"
    folder.mkdir()
    draw = np.random.default_rng(2)
    for number in range(40):
        pixels = draw.integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    for number in (3, 38):
        (folder / f"{number:02}.png").write_bytes(b"no image")
    return folder


def embed_words(crops: Path, output: Path, model: Path) -> list[Any]:
    words = ["embed", crops, "-o", output, "--checkpoint", model, "--on-bad-image", "skip"]
    return [*words, "--batch-size", "4", "--resume"]


EAGER = {"airnet_cli.workflows.embed_parts:PART_IMAGES": 4}
"""Parts of one batch, so that there is something to resume."""


def files_of_gallery(path: Path) -> list[bytes]:
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["gallery.csv", "gallery.json", "gallery.npy"]
    return [path.with_suffix(suffix).read_bytes() for suffix in (".npy", ".csv", ".json")]


def test_killed_embedding_ends_as_the_undisturbed(
    nursery, kills, crops, untrained_run, tmp_path, record_property
) -> None:
    """At random moments, then between any two files: the three files are the same to the byte."""
    output = tmp_path / "whole" / "gallery.npy"
    model = untrained_run / "model.safetensors"
    whole = nursery.run(*embed_words(crops, output, model), folder=str(tmp_path), set=EAGER)
    assert whole.code == 0, whole.output
    expected = files_of_gallery(output)

    draw = random.Random(5)
    killed = runs = gone_on = 0
    while killed < kills:
        runs += 1
        output = tmp_path / f"random-{runs}" / "gallery.npy"
        while True:
            words = embed_words(crops, output, model)
            ended = nursery.kill_after(draw.uniform(0, whole.seconds), *words, set=EAGER)
            gone_on += "resuming after" in ended.output
            killed += ended.was_killed
            if not ended.was_killed or killed == kills:
                break
        if ended.was_killed:
            ended = nursery.run(*embed_words(crops, output, model), set=EAGER)
        finished(ended)
        assert files_of_gallery(output) == expected
    record_property("killed", f"{killed} times in {runs} jobs, gone on with {gone_on} times")

    for moment in chosen_moments(whole.operations, max(1, kills // 4)):
        output = tmp_path / f"moment-{moment}" / "gallery.npy"
        words = embed_words(crops, output, model)
        ended = nursery.run(*words, folder=str(tmp_path), kill_at=moment, set=EAGER)
        assert ended.was_killed, ended.output
        finished(nursery.run(*words, set=EAGER))
        assert files_of_gallery(output) == expected, f"killed at {moment}"


def finished(ended) -> None:
    """It ended well, or was killed when nothing but its end was left to do."""
    is_done = any(said in ended.output for said in ("is finished; there is", "is whole; start"))
    assert ended.code == 0 or is_done, ended.output


def write_archive(path: Path, tint: int) -> Path:
    """A data set as a zip: a table, and twelve pictures of four people in a colour of their own."""
    rows = ["path,person_id,camera_id,split\n"]
    folder = path.with_suffix("")
    folder.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            picture = folder / f"{number}.png"
            Image.new("RGB", (8, 16), (tint, number, 0)).save(picture)
            archive.write(picture, f"{number}.png")
            split = "train" if number < 6 else "query" if number % 3 == 0 else "gallery"
            rows.append(f"{number}.png,{number // 3 + tint},{number % 3},{split}\n")
        archive.writestr("labels.csv", "".join(rows))
    return path


def tint_of(data_root: Path) -> int | None:
    """Whose pictures are prepared, by manifest and by pixels; None for nobody's."""
    try:
        manifest = load_prepared(data_root, "shop")
    except DataError:
        return None
    tints = {Image.open(manifest.root / each.path).getpixel((0, 0))[0] for each in manifest.records}
    assert len(tints) == 1
    (tint,) = tints
    people = {each.person_id - tint for each in manifest.records}
    assert people == {0, 1, 2, 3}, "the manifest is of other pictures than those that are there"
    return tint


def test_killed_preparing_starts_over(nursery, kills, tmp_path) -> None:
    """A new version takes the place of an old one, killed between any two files: the old one is
    there, the new one, or none, never a mixture; and the same command then prepares it.
    """
    old, new = (write_archive(tmp_path / f"{tint}.zip", tint) for tint in (100, 200))

    def prepare(root: Path, archive: Path, **request: Any):
        words = ["prepare-data", "csv", archive, "--name", "shop", "--data-root", root]
        return nursery.run(*words, **request)

    def prepared(root: Path) -> dict[str, bytes]:
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }

    first = tmp_path / "data"
    assert prepare(first, old).code == 0
    shutil.copytree(first, tmp_path / "start")
    whole = prepare(first, new, folder=str(first))
    assert whole.code == 0, whole.output
    expected = prepared(first)
    assert tint_of(first) == 200
    seen = set()
    last = whole.operations
    moments = chosen_moments(last, kills) + list(range(last - 8, last + 1))
    for moment in sorted(set(moments)):
        root = tmp_path / f"data-{moment}"
        shutil.copytree(tmp_path / "start", root)
        ended = prepare(root, new, folder=str(root), kill_at=moment)
        assert ended.was_killed, ended.output
        seen.add(tint_of(root))
        ended = prepare(root, new)
        assert ended.code == 0, ended.output
        assert prepared(root) == expected, f"killed at {moment}"
    assert seen == {100, None, 200} or seen == {100, None}
