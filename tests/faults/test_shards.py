"""Parts when processes and machines are lost: the rows are those of one undisturbed process.

Under torchrun with a process killed; on three Ray nodes of which one is removed; with an S3 server.
These need real processes; tests/core/gallery/test_folder.py kills within one process.
"""

import importlib.util
import os
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

from airnet_cli.core.gallery import open_gallery

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


def rows_of(folder: Path) -> tuple[list[str], np.ndarray]:
    """Names of the images, and their rows."""
    gallery = open_gallery(folder)
    return [Path(path).name for path in gallery.columns["path"]], gallery.embeddings[:]


@pytest.fixture(scope="module")
def expected(shop: Path, untrained_run: Path, nursery: Any) -> tuple[list[str], np.ndarray]:
    """What one undisturbed process computes."""
    ended = nursery.run(*words(shop / "crops", shop / "people", untrained_run))
    assert ended.code == 0, ended.output
    assert len(list((shop / "people").iterdir())) == SHARDS * 3
    return rows_of(shop / "people")


def check(folder: Path, expected: tuple[list[str], np.ndarray]) -> None:
    names, rows = rows_of(folder)
    assert names == expected[0]
    np.testing.assert_allclose(rows, expected[1], rtol=1e-4, atol=1e-5)


def wait_for(found: Any, process: subprocess.Popen[str]) -> Any:
    """What `found` gives as soon as that is something, while `process` runs."""
    until = time.monotonic() + PATIENCE
    while not (value := found()):
        assert process.poll() is None, f"it ended too early: {process.communicate()[0]}"
        assert time.monotonic() < until
        time.sleep(0.01)
    return value


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
    shop: Path, untrained_run: Path, expected: Any, kills: int, rank: int
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
        records = lambda: list(output.glob("[0-9]*.json"))  # noqa: E731
        wait_for(records, torchrun)
        os.kill(members(torchrun)[rank], signal.SIGKILL)
        before = {path: path.stat().st_mtime_ns for path in records()}
        said, _ = torchrun.communicate(timeout=PATIENCE)
    finally:
        torchrun.kill()
        torchrun.wait()
    assert torchrun.returncode == 0, said
    check(output, expected)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "is complete: 12 parts, 46 rows" in said


@needs("ray", "pyarrow", extra="'airnet[ray]'")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_lost_node_of_ray(shop: Path, untrained_run: Path, expected: Any) -> None:
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
            wait_for(lambda: list(output.glob("[0-9]*.json")), driver)
            cluster.stdin.write("remove\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline() == "removed\n"
            assert len(list(output.glob("[0-9]*.json"))) < SHARDS
            said, _ = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == 0, said
    check(output, expected)
    assert "is complete: 12 parts, 46 rows" in said


@needs("s3fs", "moto", "boto3", "flask", extra="'airnet[s3]' 'moto[server]'")
def test_an_s3_server(shop: Path, untrained_run: Path, expected: Any) -> None:
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
    check(folder, expected)
    assert wrong.returncode == 1
    (line,) = error.splitlines()
    assert line.startswith("error: 's3://nowhere/crops' can't be used: The specified bucket does")
