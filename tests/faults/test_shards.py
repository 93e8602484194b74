"""Shards when processes and machines are lost: the bytes are those of one undisturbed process.

Killed before each operation on a file; under torchrun with a process killed; on three Ray nodes of
which one is taken away; into an S3 server.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from airnet_cli.core.files import remove_parts

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

IMAGES = 46
SHARDS = 12

PATIENCE = 300.0


def needs(*modules: str, extra: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    reason = f"needs {', '.join(missing)}: pip install {extra}"
    return pytest.mark.skipif(bool(missing), reason=reason)


def environment(**variables: str) -> dict[str, str]:
    """Of every process here: this checkout's package, one thread, no proxy."""
    own = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return own | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **variables}


@contextmanager
def helper(script: str) -> Iterator[subprocess.Popen[str]]:
    """A helper of this folder; its stdin is closed at the end, and it ends."""
    started = subprocess.Popen(
        [sys.executable, str(HERE / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    try:
        yield started
    finally:
        started.stdin.close()
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        started.stdout.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `crops/`: 46 images."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "crops").mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "crops" / f"{number:02}.png")
    return folder


def words(images: object, output: object, model: object, size: int = 4) -> list[str]:
    asked = ["embed", images, "-o", output, "--checkpoint", model, "--shard-size", size]
    return [str(word) for word in (*asked, "--batch-size", 2, "--workers", 0, "--device", "cpu")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(shop: Path, untrained_run: Path, nursery: Any) -> dict[str, bytes]:
    """The files that one process writes undisturbed, with one thread."""
    ended = nursery.run(*words(shop / "crops", shop / "people", untrained_run))
    assert ended.code == 0, ended.output
    assert len(contents(shop / "people")) == SHARDS * 3 + 2
    return contents(shop / "people")


def wait_for(found: Any, process: subprocess.Popen[str]) -> Any:
    """What `found` gives as soon as that is something, while `process` runs."""
    until = time.monotonic() + PATIENCE
    while not (value := found()):
        assert process.poll() is None, f"it ended too early: {process.communicate()[0]}"
        assert time.monotonic() < until
        time.sleep(0.01)
    return value


def test_killed_before_each_operation(
    nursery: Any, kills: int, shop: Path, untrained_run: Path, tmp_path: Path
) -> None:
    """The same command then goes on, and what it leaves is as if nothing had been."""
    (tmp_path / "crops").mkdir()
    for number in range(5):
        shutil.copy(shop / "crops" / f"{number:02}.png", tmp_path / "crops")
    eager = {"airnet_cli.core.gallery:SYNC_SECONDS": 0.0}

    def run(name: str, **request: Any) -> Any:
        asked = words(tmp_path / "crops", tmp_path / name, untrained_run, size=3)
        return nursery.run(*asked, set=eager, **request)

    whole = run("whole", folder=str(tmp_path))
    assert whole.code == 0, whole.output
    undisturbed = contents(tmp_path / "whole")
    step = 1 if kills >= 30 else 11
    for moment in range(1, whole.operations + 1, step):
        killed = run("killed", folder=str(tmp_path), kill_at=moment)
        assert killed.was_killed, killed.output
        ended = run("killed")
        assert ended.code == 0, ended.output
        remove_parts(tmp_path / "killed", "gallery.json")  # as the next change of the gallery does
        assert contents(tmp_path / "killed") == undisturbed, f"killed at {moment}"
        shutil.rmtree(tmp_path / "killed")


def members(torchrun: subprocess.Popen[str]) -> dict[int, int]:
    """The process ids of those that torchrun started, by rank."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for pid in map(int, children):
        for variable in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            if variable.startswith("RANK="):
                found[int(variable.removeprefix("RANK="))] = pid
    return found


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_torchrun(
    shop: Path, untrained_run: Path, expected: dict[str, bytes], kills: int, rank: int
) -> None:
    """torchrun starts it again; what is there is skipped, the rest is computed."""
    if rank == 0 and kills < 30:
        pytest.skip("takes as long as the other one, and `make soak` tries it")
    output = shop / f"torchrun-{rank}"
    torchrun = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--max-restarts", "1", "-m", "airnet_cli"),
            *words(shop / "crops", output, untrained_run),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    try:
        ours = {f"shard-{number:05}-of-{SHARDS:05}" for number in range(rank, SHARDS, 2)}

        def in_work() -> bool:
            names = [path.name for path in output.glob(".shard-*.part")]
            done = [path for path in output.glob("shard-*.json") if path.stem in ours]
            return bool(done) and any(name.split(".")[1] in ours for name in names)

        wait_for(in_work, torchrun)
        os.kill(members(torchrun)[rank], signal.SIGKILL)
        before = {path: path.stat().st_mtime_ns for path in output.glob("shard-*.json")}
        assert len(before) < SHARDS
        said, _ = torchrun.communicate(timeout=PATIENCE)
    finally:
        torchrun.kill()
        torchrun.wait()
    assert torchrun.returncode == 0, said
    assert contents(output) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "is whole: 12 shards, 46 rows, 0 images skipped" in said


@needs("ray", "pyarrow", extra="'airnet[ray]'")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_lost_node_of_ray(shop: Path, untrained_run: Path, expected: dict[str, bytes]) -> None:
    """Three nodes, one taken away while it computes: Ray hands its shards out again."""
    output = shop / "ray"
    with helper("ray_cluster.py") as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert address, "no cluster"
        driver = subprocess.Popen(
            [
                *(sys.executable, "-m", "airnet_cli"),
                *words(shop / "crops", output, untrained_run),
                *("--engine", "ray"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(RAY_ADDRESS=address),
        )
        try:
            wait_for(lambda: list(output.glob("shard-*.json")), driver)
            cluster.stdin.write("remove\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline() == "removed\n"
            assert len(list(output.glob("shard-*.json"))) < SHARDS
            said, _ = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, said
    assert contents(output) == expected
    assert "is whole: 12 shards, 46 rows" in said


@needs("s3fs", "moto", "boto3", "flask", extra="'airnet[s3]' 'moto[server]'")
def test_an_s3_server(shop: Path, untrained_run: Path, expected: dict[str, bytes]) -> None:
    """Images and shards in a bucket, two processes at once: the rows are those of the folder."""
    import fsspec

    folder = shop / "s3"
    with helper("s3_server.py") as server:
        assert server.stdout is not None
        variables = {
            "AWS_ENDPOINT_URL": server.stdout.readline().strip(),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        asked = [sys.executable, "-m", "airnet_cli"]

        def airnet(images: object, output: object) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*asked, *words(images, output, untrained_run)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(**variables),
            )

        options = {
            "endpoint_url": variables["AWS_ENDPOINT_URL"],
            "key": "key",
            "secret": "secret",
            "use_listings_cache": False,
        }
        system = fsspec.filesystem("s3", **options)
        try:
            system.put(f"{shop}/crops", "shop/crops", recursive=True)
            racing = [airnet("s3://shop/crops", "s3://shop/people/") for _ in range(2)]
            said = [each.communicate(timeout=PATIENCE) for each in racing]
            assert [each.returncode for each in racing] == [0, 0], said
            system.get("shop/people", str(folder), recursive=True)
            wrong = airnet("s3://nowhere/crops", "s3://shop/people/")
            _, error = wrong.communicate(timeout=PATIENCE)
        finally:
            system.clear_instance_cache()
    fetched = contents(folder)
    assert sorted(fetched) == sorted(expected)
    rows = [name for name in expected if name.endswith(".npy")]
    assert {name: fetched[name] for name in rows} == {name: expected[name] for name in rows}
    tables = b"".join(fetched[name] for name in sorted(fetched) if name.endswith(".csv"))
    listed = [line for line in tables.decode().splitlines() if line != "path"]
    assert listed == [f"s3://shop/crops/{number:02}.png" for number in range(IMAGES)]
    assert wrong.returncode == 1
    (line,) = error.splitlines()
    assert line.startswith("error: 's3://nowhere/crops' can't be used: The specified bucket does")
