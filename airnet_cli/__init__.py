"""airnet: appearance and interaction features for person re-identification.

Importing this package loads neither torch nor typer; heavy modules are imported where
they are used: `Embedder` when it is first asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airnet_cli.workflows.embedder import Embedder

__all__ = ["Embedder", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "Embedder":
        from airnet_cli.workflows.embedder import Embedder

        return Embedder
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
