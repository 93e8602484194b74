"""Parts by Ray Data: it hands out their numbers, and again those of a machine that is lost.

Only numbers and counts go through Ray. The machines read images and write parts themselves, in a
folder that they share or in object storage. Needs `airnet[ray]`.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from airnet_cli.core.gallery.storage import Folder, folder_at, is_url
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import DeviceName
from airnet_cli.errors import AirnetError, DataError, RuntimeSetupError
from airnet_cli.workflows.embed_parts import Computed, EmbedOptions, Images, PartWorker, Session
from airnet_cli.workflows.runs import Model, find_model


class Cluster:
    """The Ray cluster that RAY_ADDRESS names, or one of only this machine, for the block."""

    def __init__(self) -> None:
        """Nothing is connected yet.

        Raises:
            RuntimeSetupError: Ray is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise RuntimeSetupError(
                f"--engine ray needs Ray, which is not installed ({error}); "
                "pip install 'airnet[ray]', or leave --engine out"
            ) from None
        self._ray: Any = ray

    def __enter__(self) -> "Cluster":
        """Connect, or start a cluster.

        Raises:
            RuntimeSetupError: there is none at RAY_ADDRESS.
        """
        address = os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if address else {"include_dashboard": False}
        if not address or address.startswith("127."):  # else Ray looks for its address on the net
            own["_node_ip_address"] = (address or "127.0.0.1").partition(":")[0]
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **own,
            )
        except Exception as error:  # of many kinds
            said = " ".join(str(error).split())[:200]
            raise RuntimeSetupError(
                f"no Ray cluster at RAY_ADDRESS={address} ({said}); start one with `ray start`, or "
                "unset it to use only this machine"
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end us with another code
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect; what computes is ended."""
        self._ray.shutdown()

    def compute(
        self,
        options: EmbedOptions,
        model: Model,
        folder: Folder,
        images: Images,
        progress: Progress,
    ) -> Session:
        """Compute the missing parts in as many processes as the machines have space for.

        Raises:
            AirnetError: the first thing that went wrong, when the other parts are done.
        """
        device = self._device(options.device)
        planner = PartWorker(
            replace(options, device="cpu"), model, folder, images, options.shard_size
        )
        job, total = planner.job, len(images.places)
        missing = job.missing(folder)
        left = sum(job.count(number, total) for number in missing)
        started, computed, done = time.perf_counter(), [], 0
        progress("embedding", done, left, "images")
        for each in self._results(_anywhere(replace(options, device=device), model), missing):
            computed.append(each)
            done += job.count(each.number, total)
            progress("embedding", done, left, "images")
        return Session(
            worker=planner,
            device=device,
            computed=tuple(computed),
            before=total - left,
            started=started,
        )

    def _device(self, asked: DeviceName) -> DeviceName:
        """What the machines compute on; `auto` means their GPUs, if they have some.

        Raises:
            RuntimeSetupError: GPUs were asked for by name and there are none.
        """
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        if asked == "auto":
            return "cuda" if has_gpus else "cpu"
        if asked == "cuda" and not has_gpus:
            raise RuntimeSetupError("device 'cuda': the machines of this Ray cluster have no GPU")
        return asked

    def _results(self, options: EmbedOptions, numbers: Sequence[int]) -> Iterator[Computed]:
        if not numbers:
            return
        on_gpus = options.device == "cuda"
        numbered = self._ray.data.from_items(
            [{"number": number} for number in numbers], override_num_blocks=len(numbers)
        )
        results = numbered.map(
            _Process,
            fn_constructor_args=(options,),
            concurrency=(1, len(numbers)),
            num_cpus=1,  # Ray gives each process as many threads
            num_gpus=1 if on_gpus else None,
        )
        wrong = ""
        try:
            for row in results.iter_rows():
                if row["wrong"]:
                    wrong = wrong or row["wrong"]
                else:
                    yield Computed(**json.loads(row["computed"]))
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1][:300]
            raise DataError(
                f"Ray gave up: {said}; what is done is kept: repeat the same command"
            ) from None
        if wrong:
            raise DataError(wrong)


class _Process:
    """A process of the cluster: it prepares with its first part, then computes one by one."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
        self._worker: PartWorker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Compute the part `number`; errors are told in `wrong`, not raised.

        Ray would take a raised error for a broken machine, and show its traceback.
        """
        options = self._options
        try:
            if self._worker is None:
                model = find_model(options.model, options.runs_root)
                images = Images.of(options, options.output)
                self._worker = PartWorker(
                    options, model, folder_at(options.output), images, options.shard_size
                )
            number = int(row["number"])
            computed = list(self._worker.compute([number], silent))
            # Empty: another process was faster.
            return _row(computed[0] if computed else Computed(number=number, is_ours=False))
        except AirnetError as error:
            return {"computed": "", "wrong": str(error)}


def _row(computed: Computed) -> dict[str, str]:
    return {"computed": json.dumps(asdict(computed)), "wrong": ""}


def _anywhere(options: EmbedOptions, model: Model) -> EmbedOptions:
    """The same options for a process in another folder, on a machine that has the same files."""

    def absolute(place: Path | str) -> Path | str:
        return place if is_url(place) else Path(place).absolute()

    return replace(
        options,
        inputs=tuple(map(absolute, options.inputs)),
        output=absolute(options.output),
        data_root=options.data_root.absolute(),
        model=model.checkpoint.absolute(),
        exported=None if options.exported is None else options.exported.absolute(),
    )
