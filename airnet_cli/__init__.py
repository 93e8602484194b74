"""airnet: appearance and interaction features for person re-identification.

Importing this package loads neither torch nor typer; heavy modules are imported where
they are used.
"""

__version__ = "0.1.0"
