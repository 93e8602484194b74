"""One file per command: config and paths in, frozen result out. No printing."""
