"""What tests of every part share. Nothing heavy here: each test file pays for its own imports."""

import base64
import json
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session", autouse=True)
def _hear_ctrl_c() -> None:
    """Shells have background jobs of scripts ignore SIGINT, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Results of public reference code, which lie beside the project where its makers put them."""
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden results at {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the prepared set `tiny`: 8 drawn people to train on, 4 to test on.

    Of the distractors and junk that are drawn it has a third: scoring takes half the time.
    """
    from airnet_cli.core.data.demo import generate
    from airnet_cli.core.data.manifest import manifest_path, write_manifest

    root = tmp_path_factory.mktemp("data")
    images = root / "tiny" / "images"
    drawn = generate(images, seed=3, train_identities=8, test_identities=4, processes=1)
    strangers = [each for each in drawn if each.person_id < 1]
    dropped = {each.path for number, each in enumerate(strangers) if number % 3}
    records = [each for each in drawn if each.path not in dropped]
    path = manifest_path(root, "tiny")
    write_manifest(path, name="tiny", root=images, records=records, split_rule="drawn for tests")
    return root


@pytest.fixture(scope="session")
def scarce_data_root(tiny_data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a third of the training images and of the strangers, by the same name: an epoch
    takes a third of the time.

    For tests of what a training does, not of what comes out: after so few steps, running averages
    of the norms are so far off that all embeddings are alike.
    """
    from airnet_cli.core.data.manifest import load_prepared, manifest_path, write_manifest

    whole = load_prepared(tiny_data_root, "tiny")
    plenty = [each for each in whole.records if each.split == "train" or each.person_id < 1]
    dropped = {each.path for number, each in enumerate(plenty) if number % 3}
    records = [each for each in whole.records if each.path not in dropped]
    root = tmp_path_factory.mktemp("scarce")
    path = manifest_path(root, "tiny")
    path.parent.mkdir()
    write_manifest(path, name="tiny", root=whole.root, records=records, split_rule="a third")
    return root


TINY = (
    "data.name=tiny",
    "data.height_px=64",
    "data.width_px=32",
    "model.backbone=mobilenet_v2",
    "model.init=none",
    "training.epochs=2",
    "training.identities_per_batch=4",
    "training.images_per_identity=2",
    "training.learning_rate_epochs=[1]",
    "training.workers=0",
    "evaluation.every=0",
)
"""Overrides that turn the preset `demo` into a training of seconds on `tiny`."""


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """See `TINY`."""
    return TINY


@pytest.fixture(scope="session")
def tiny_run(tiny_data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of AIR-Net on `tiny`; treat it as read-only, or copy it."""
    from airnet_cli.config.presets import load_preset
    from airnet_cli.workflows.train import TrainOptions, train

    runs_root = tmp_path_factory.mktemp("runs")
    options = TrainOptions(data_root=tiny_data_root, runs_root=runs_root, device="cpu")
    trained = train(load_preset("demo", TINY), "tiny", options)
    assert trained is not None
    return trained.run


@pytest.fixture(scope="session")
def exported_run(untrained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What exporting a copy of `untrained_run` to ONNX, beside its checkpoint, gave."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'airnet[onnx]'")
    import numpy as np
    from PIL import Image

    from airnet_cli.workflows.export import export

    folder = tmp_path_factory.mktemp("exported")
    run = folder / "runs" / untrained_run.name
    shutil.copytree(untrained_run, run)
    random = np.random.default_rng(5)
    (folder / "crops").mkdir()
    for number in range(4):
        pixels = random.integers(0, 256, (50, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "crops" / f"{number}.png")
    return export(
        model=run,
        runs_root=folder / "runs",
        kind="onnx",
        output=None,
        images=[folder / "crops"],
        data_root=folder / "data",
        on_model=lambda _: None,
        noted=lambda _: None,
    )


@pytest.fixture(scope="session")
def needs_openvino() -> None:
    """Skip where it is missing; found, not imported: importing it reports to its maker."""
    if find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install 'airnet[openvino]'")


@pytest.fixture
def quick_exporter(exported_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`write_onnx` gives the graph of `exported_run` again: torch's exporter takes many seconds."""

    def copy(path: Path, network: object, description: object) -> None:
        shutil.copyfile(exported_run.path, path)

    monkeypatch.setattr("airnet_cli.workflows.export.write_onnx", copy)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the JSON files of a run by hand, under `runs` of the test's folder."""
    from airnet_cli.config.presets import load_preset

    def scores_of(mAP: float, rank1: float) -> dict[str, Any]:
        return {
            "mAP": mAP,
            "mAP_trapezoid": mAP - 0.01,
            "mINP": mAP / 2,
            "cmc": {"1": rank1, "5": rank1 + 0.1, "10": rank1 + 0.15, "20": rank1 + 0.2},
        }

    def write(
        name: str,
        *overrides: str,
        preset: str = "market1501",
        seed: int = 1,
        scores: tuple[float, float] | None = (0.5, 0.6),
        epochs: int = 2,
        protocol: dict[str, Any] | None = None,
    ) -> Path:
        """`scores`: mAP and rank-1, each head's a little lower; None: the run is unfinished."""
        values = load_preset(preset, [*overrides, f"training.seed={seed}"])
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        record = {"version": 1, "preset": values.model_dump(mode="json")}
        (run / "preset.json").write_text(json.dumps(record))
        heads = ["A1"] if values.model.variant == "baseline" else ["A1", "A2", "I"]
        lines: list[dict[str, Any]] = []
        for epoch in range(1, epochs + 1):
            terms = {"identity_loss": 3 / epoch, "triplet_loss": 0.2 / epoch}
            each = [{"name": head, **terms, "active_triplets": 1 / epoch} for head in heads]
            lines.append({"epoch": epoch, "epochs": epochs, "loss": 4 / epoch, "heads": each})
        if scores is not None:
            lines[-1:] = [line | {"scores": scores_of(*scores)} for line in lines[-1:]]
            written = {
                "version": 1,
                **scores_of(*scores),
                "heads": {
                    head: scores_of(scores[0] - 0.01 * place, scores[1] - 0.02 * place)
                    for place, head in enumerate(heads, start=1)
                },
                "protocol": {
                    "data": {"name": values.data.name, "query_images": 3368},
                    "ranked_gallery_images": 15913,
                    "metric": "cosine",
                    "camera_filter": True,
                    "flip": False,
                    "rerank": False,
                    "selection": "last",
                    "precision": "fp32",
                    **(protocol or {}),
                },
            }
            (run / "scores.json").write_text(json.dumps(written))
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return write


class Browser:
    """Headless Chromium, spoken to by the W3C WebDriver protocol over HTTP: no library needed."""

    def __init__(self, driver: str) -> None:
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        port = next(
            found[1]
            for line in self._driver.stdout
            if (found := re.search(r"started successfully on port (\d+)", line))
        )
        self._url = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._post("", {"capabilities": {"alwaysMatch": options}})
        self._url += f"/{session['sessionId']}"

    def _post(self, path: str, body: dict[str, object]) -> Any:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        # No proxy: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, *, width_px: int, height_px: int, scheme: str = "light") -> None:
        """Show a file in a window of this size, for a reader who prefers `scheme`."""
        metrics = {
            "width": width_px,
            "height": height_px,
            "deviceScaleFactor": 1,
            "mobile": width_px < 600,
        }
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", {"features": [preference]})
        self._post("/url", {"url": page.resolve().as_uri()})

    def devtools(self, command: str, parameters: dict[str, object]) -> Any:
        """Send a command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        """What a piece of JavaScript returns."""
        return self._post("/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        """Click the first element that the CSS selector finds, where the mouse would."""
        found = self._post("/element", {"using": "css selector", "value": selector})
        self._post(f"/element/{next(iter(found.values()))}/click", {})

    def complaints(self) -> list[str]:
        """What the browser's console says: refused loads, errors."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Write what the window shows."""
        shot = self.devtools("Page.captureScreenshot", {"format": "png"})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser and its driver."""
        request = urllib.request.Request(self._url, method="DELETE")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(request, timeout=60).close()
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            assert self._driver.stdout is not None
            self._driver.stdout.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, for pages that people open."""
    driver = shutil.which("chromedriver")
    if driver is None or not any(
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    ):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    started = Browser(driver)
    yield started
    started.close()


@dataclass(frozen=True)
class MiniatureCuhk03:
    """A few persons of CUHK03, drawn, in the formats of the two official files."""

    images: Path
    """`cuhk-03.mat`, MATLAB 7.3."""
    protocol: Path
    """`cuhk03_new_protocol_config_labeled.mat`, MATLAB 5."""
    pixels: dict[str, Any]
    """(H, W, 3) uint8 of each image, by its name in the protocol."""


CUHK03_PERSONS = (3, 2, 1, 1, 1)
"""In each pair of cameras; persons 2 and 4 train, the others are tested on."""


@pytest.fixture
def miniature_cuhk03(tmp_path: Path) -> MiniatureCuhk03:
    """Both files in `tmp_path/cuhk03`, each image with a size and pixels of its own."""
    import numpy as np

    folder = tmp_path / "cuhk03"
    folder.mkdir()
    random = np.random.default_rng(3)
    cells: dict[str, Any] = {}
    person_ids: dict[str, int] = {}
    number = 0
    for pair, persons in enumerate(CUHK03_PERSONS, start=1):
        for person in range(1, persons + 1):
            number += 1
            # The fifth image by camera 1 is nobody's, like many in the official file.
            for image in (1, 2, 6, 7, 10):
                name = f"{pair}_{person:03}_{1 if image <= 5 else 2}_{image:02}.png"
                height, width = random.integers(5, 15, 2)
                cells[name] = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                person_ids[name] = number
    images = folder / "cuhk-03.mat"
    _write_cuhk03_images(images, cells)
    protocol = folder / "cuhk03_new_protocol_config_labeled.mat"
    _write_cuhk03_protocol(protocol, person_ids)
    return MiniatureCuhk03(images=images, protocol=protocol, pixels=cells)


def _write_cuhk03_images(path: Path, cells: dict[str, Any]) -> None:
    """Write cells of cells of images as MATLAB 7.3 does: references, axes in the other order."""
    import h5py
    import numpy as np

    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")

        def put(value: Any, kind: str) -> Any:
            written = references.create_dataset(str(len(references)), data=value)
            written.attrs["MATLAB_class"] = np.bytes_(kind)
            return written

        def cell_array(rows: list[list[Any]]) -> Any:
            value = np.array([[each.ref for each in row] for row in rows], dtype=h5py.ref_dtype)
            return np.ascontiguousarray(value.T)

        empty = put(np.zeros(2, dtype=np.uint64), "double")
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        for boxes in ("detected", "labeled"):
            pairs = []
            for pair, persons in enumerate(CUHK03_PERSONS, start=1):
                rows = []
                for person in range(1, persons + 1):
                    names = [
                        f"{pair}_{person:03}_{1 if image <= 5 else 2}_{image:02}.png"
                        for image in range(1, 11)
                    ]
                    # The boxes differ, so a reader that mixes them up is caught.
                    shades = {
                        name: pixels if boxes == "labeled" else 255 - pixels
                        for name, pixels in cells.items()
                    }
                    rows.append(
                        [put(shades[n].T, "uint8") if n in shades else empty for n in names]
                    )
                pairs.append([put(cell_array(rows), "cell")])
            top = file.create_dataset(boxes, data=cell_array(pairs))
            top.attrs["MATLAB_class"] = np.bytes_("cell")
        testsets = [[put(np.ones((2, 100)), "double")] for _ in range(20)]
        file.create_dataset("testsets", data=cell_array(testsets))
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Tue Jul 15 2014 HDF5 schema 1.0"
    with path.open("r+b") as file:
        file.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")


def _write_cuhk03_protocol(path: Path, person_ids: dict[str, int]) -> None:
    """Write the split: the first image of a test person by each camera is a query."""
    import numpy as np
    import scipy.io

    names = list(person_ids)

    def column(values: list[int], kind: Any) -> Any:
        return np.array(values, dtype=kind).reshape(-1, 1)

    train = [i for i, name in enumerate(names, 1) if person_ids[name] in (2, 4)]
    query = [i for i, name in enumerate(names, 1) if i not in train and name[-6:-4] in ("01", "06")]
    gallery = [i for i in range(1, len(names) + 1) if i not in train and i not in query]
    filelist = np.empty((len(names), 1), dtype=object)
    filelist[:, 0] = names
    scipy.io.savemat(
        path,
        {
            "camId": column([int(name.split("_")[2]) for name in names], np.uint8),
            "filelist": filelist,
            "labels": column(list(person_ids.values()), np.uint16),
            "train_idx": column(train, np.uint16),
            "query_idx": column(query, np.uint16),
            "gallery_idx": column(gallery, np.uint16),
        },
    )
