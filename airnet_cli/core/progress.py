"""How long work tells its caller how far it is. No printing here: `cli/output.py` draws the bars."""

from typing import Protocol


class Progress(Protocol):
    """Called again and again while something long is going on."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Report that `done` of `total` (None: not known) `unit`s ("images") of `stage` ("reading") are finished."""


def silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """The progress callback that does nothing."""
