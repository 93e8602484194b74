"""No command opens a connection unless a download was asked for: all of them run where Python
refuses to.

The refusal is an audit hook, set in every process that starts (`sitecustomize`), so nothing can be
done around it; it writes down what was tried, so nothing can be swallowed either. Sockets between
processes of this machine (AF_UNIX) are allowed: image readers use them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from PIL import Image

from airnet_cli.cli.app import app

PROJECT = Path(__file__).resolve().parents[1]

HOOK = """
import os, sys

def refuse(event, arguments):
    kind, _, what = event.partition(".")
    if kind != "socket":
        return
    # Making or binding one reaches nobody: urllib3 looks in that way whether there is IPv6.
    is_net = what in ("getaddrinfo", "gethostbyname", "gethostbyaddr")
    is_net = is_net or (
        what in ("connect", "sendto", "sendmsg")
        and any(isinstance(each, tuple) for each in arguments)  # an address, not of a file
    )
    if is_net:
        handle = os.open(os.environ["TRIED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{event} {arguments[1:]}\\n".encode())
        os.close(handle)
        raise PermissionError(1, "no connections in this test")

sys.addaudithook(refuse)
"""

PROGRAM = """
import functools, json, sys

if __name__ == "__main__":  # not in processes that read images
    from airnet_cli.cli.app import app
    from airnet_cli.core.data import demo

    few = {"train_identities": 4, "test_identities": 2}
    demo.generate = functools.partial(demo.generate, **few)
    for words in json.load(sys.stdin):
        try:
            app(words)
        except SystemExit as end:
            if end.code:
                sys.exit(f"exit code {end.code}: airnet {' '.join(words)}")
"""


@dataclass(frozen=True)
class Offline:
    """Where commands run, and what they tried."""

    folder: Path

    @property
    def tried(self) -> str:
        """A line for each attempt."""
        file = self.folder / "tried.txt"
        return file.read_text() if file.exists() else ""

    def run(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """Run the command lines (after `airnet`) one after the other, in `folder`."""
        return subprocess.run(
            [sys.executable, self.folder / "program.py"],
            input=json.dumps([command.split() for command in commands]),
            cwd=self.folder,
            env=os.environ
            | {
                "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{PROJECT}",
                "TRIED": str(self.folder / "tried.txt"),
                "TORCH_HOME": str(self.folder / "torch"),
                "AIRNET_DATA": str(self.folder / "data"),
                "AIRNET_RUNS": str(self.folder / "runs"),
            },
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def offline(tmp_path: Path) -> Offline:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "program.py").write_text(PROGRAM)
    return Offline(tmp_path)


DATA_SETS = {
    "market": (
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c3s1_000551_00.jpg",
    ),
    "cuhk03/labeled": (
        "bounding_box_train/0002_c1_1.png",
        "query/0001_c1_1.png",
        "bounding_box_test/0001_c2_7.png",
    ),
    "cuhk03/detected": (
        "bounding_box_train/0002_c1_1.png",
        "query/0001_c1_1.png",
        "bounding_box_test/0001_c2_7.png",
    ),
    "MSMT17_V1": (
        "train/0000/0000_000_01_0303morning_0008_0.jpg",
        "train/0000/0000_001_02_0303morning_0009_0.jpg",
        "test/0000/0000_000_03_0303morning_0008_0.jpg",
        "test/0000/0000_001_04_0303morning_0009_0.jpg",
    ),
    "shop": ("anna/1.png", "anna/2.png", "bert/1.png", "bert/2.png", "carl/1.png", "carl/2.png"),
}
"""Layouts that each reader knows, with a picture or two."""


def lay_out(folder: Path) -> None:
    for name, files in DATA_SETS.items():
        for file in files:
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16), (90, 120, 60)).save(path)
    lists = ("list_train", "list_val", "list_query", "list_gallery")
    for name, file in zip(lists, DATA_SETS["MSMT17_V1"], strict=True):
        line = f"{file.partition('/')[2]} 0\n"
        (folder / "MSMT17_V1" / f"{name}.txt").write_text(line)
    rows = [f"shop/{name},1,1,train\n" for name in DATA_SETS["shop"]]
    (folder / "table.csv").write_text("path,person_id,camera_id,split\n" + "".join(rows))


READERS = (
    "prepare-data demo --json",
    "prepare-data market1501 market --allow-partial --workers 0",
    "prepare-data cuhk03-labeled cuhk03 --allow-partial --workers 0",
    "prepare-data cuhk03-detected cuhk03 --allow-partial --workers 0",
    "prepare-data msmt17 MSMT17_V1 --allow-partial --workers 0",
    "prepare-data folder shop --workers 0",
    "prepare-data csv table.csv --workers 1",
)
USES = (
    "presets",
    "train -p demo --runs-root trained {settings} --set training.workers=1",
    "evaluate --rerank --flip --json",
    "evaluate --calibrate --json",
    "compare {runs}",
    "embed shop -o gallery.npy",
    "embed shop -o shards --shard-size 4",
    "gallery count gallery.npy",
    "match shop/anna/1.png --gallery gallery.npy --html match.html --picture match.png",
    "embed shop -o people --append",
    "gallery delete people shop/anna/1.png",
    "gallery compact people",
    "visualize shop/bert --gradcam --attention --ranking --gallery gallery.npy --html page.html",
    "visualize --curves {run}",
    "export {small} --format onnx -o network.onnx --images shop/bert",
)
"""After a training on `tiny`; `small` is an untrained run of ResNet-18."""
WITH_OPENVINO = (
    "export {small} --format openvino --images shop/bert",
    "embed shop -o by-openvino.npy --checkpoint {small} --runtime openvino",
)
WITH_USEARCH = (
    "embed shop -o with-graph.npy",
    "index with-graph.npy --kind hnsw",
    "match shop/anna/1.png --gallery with-graph.npy --index hnsw",
)


def leaf_commands(command=None, above: str = "") -> Iterator[str]:
    command = command or typer.main.get_command(app)
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from leaf_commands(each, f"{above}{name} ")
        else:
            yield f"{above}{name}"


def test_all_commands_are_tried_here():
    """A new command without a line above is a red test."""
    tried = [f"{words} " for words in (*READERS, *USES)]
    missing = [name for name in leaf_commands() if not any(t.startswith(f"{name} ") for t in tried)]
    assert missing == []


@pytest.mark.slow
def test_readers_open_no_connection(offline) -> None:
    """Data sets are read from disk, the demo is drawn."""
    lay_out(offline.folder)
    done = offline.run(*READERS)
    assert (done.returncode, offline.tried) == (0, ""), done.stderr


@pytest.mark.slow
def test_commands_open_no_connection(
    offline, tiny_data_root, tiny_run, untrained_run, tiny_overrides
) -> None:
    """Training, scoring, embedding, matching, drawing; pages and pictures too."""
    lay_out(offline.folder)
    (offline.folder / "data").symlink_to(tiny_data_root)
    runs = offline.folder / "runs"
    shutil.copytree(tiny_run.parent, runs)  # scores are written into it
    words = {
        "settings": " ".join(f"--set {each}" for each in tiny_overrides),
        "runs": runs,
        "run": runs / tiny_run.name,
        # Half the exporter's work; outside of `runs`, where it would be the newest.
        "small": shutil.copytree(untrained_run, offline.folder / "small"),
    }
    uses = [*USES]
    uses += WITH_OPENVINO if find_spec("openvino") else ()
    done = offline.run(*(each.format(**words) for each in uses))
    assert (done.returncode, offline.tried) == (0, ""), done.stderr


@pytest.mark.slow
def test_a_download_that_was_asked_for_is_tried_and_is_one_line(
    offline, tiny_data_root, tiny_overrides
) -> None:
    """`model.init = imagenet` without a connection: what is missing, and where to put it."""
    (offline.folder / "data").symlink_to(tiny_data_root)
    settings = " ".join(f"--set {each}" for each in tiny_overrides if "init" not in each)
    done = offline.run(f"train -p demo {settings} --set model.init=imagenet")
    assert done.returncode == 1
    assert offline.tried.startswith("socket.getaddrinfo")
    error, end = done.stderr.splitlines()
    assert error.startswith("error: model.init = imagenet needs mobilenet_v2-")
    assert "could not be downloaded" in error
    assert str(offline.folder / "torch") in error
    assert end.startswith("exit code 1")
    assert not (offline.folder / "runs").exists()
