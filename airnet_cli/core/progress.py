"""How long work tells its caller how far it is. `cli/output.py` draws the bars, not core."""

from typing import Protocol


class Progress(Protocol):
    """Called again and again while something long is going on."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Report that `done` of `total` (None: not known) `unit`s of `stage` are finished."""


def silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """The progress callback that does nothing."""
