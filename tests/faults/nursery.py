"""Runs `airnet` commands in forked processes, which are there at once and can be killed for real.

Starting Python and torch takes seconds; a fork of a process that has imported them and computed
nothing takes none. Reads requests as JSON lines from stdin:

    words       of the command line
    output      where stdout and stderr of the command go
    folder      with `kill_at`: the n-th time that a file below this folder is to be opened for
    kill_at     writing, renamed or removed, the process kills itself (SIGKILL) before that
    set         {"module:NAME": value}, set before the command runs
    hang        a function, "module:NAME", that says `hanging` and never comes back

and writes two for each: `{"pid": ...}`, then `{"code": ..., "operations": ...}`, where a negative
code is a signal and `operations` is how many there were below `folder`.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from PIL import Image

from airnet_cli.cli.app import main

MODULES = (
    "rich.progress",
    "rich.table",
    "airnet_cli.workflows.train",
    "airnet_cli.workflows.variants",
    "airnet_cli.workflows.embed",
    "airnet_cli.workflows.collection",
    "airnet_cli.workflows.prepare_data",
)


def count_operations(folder: str, kill_at: int | None, counted: Path) -> None:
    """Count what changes files below `folder`, and stop for good before number `kill_at`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.fsdecode(path)
        if not name.startswith(folder) or name == str(counted):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        handle = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, str(seen).encode())
        os.close(handle)

    sys.addaudithook(hook)


def hang(*_: object, **__: object) -> None:
    """Be still busy when the next signal comes."""
    sys.stderr.write("hanging\n")  # which is not buffered for longer than a line
    time.sleep(600)


def run(request: dict[str, object], counted: Path) -> None:
    """The child's life."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it
    output = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 70
    try:
        for name, value in request.get("set", {}).items():
            module, _, attribute = name.partition(":")
            setattr(importlib.import_module(module), attribute, value)
        if "hang" in request:
            module, _, attribute = request["hang"].partition(":")
            getattr(importlib.import_module(module), attribute)  # a name of before would never hang
            setattr(importlib.import_module(module), attribute, hang)
        sys.argv = ["airnet", *request["words"]]
        if "folder" in request:
            count_operations(str(request["folder"]), request.get("kill_at"), counted)
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """One request after the other."""
    for module in MODULES:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorboard.summary.writer.record_writer")
    Image.init()  # or each command looks for all its formats anew
    answers = os.fdopen(os.dup(1), "w")
    counted = Path(sys.argv[1]) / f"operations-{os.getpid()}"
    for line in sys.stdin:
        request = json.loads(line)
        counted.write_text("0")
        pid = os.fork()
        if not pid:
            run(request, counted)
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        done = {"code": os.waitstatus_to_exitcode(status), "operations": int(counted.read_text())}
        print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    serve()
