"""The shared core model package: network, data, losses, retrieval. Plain arguments, no printing."""
