"""Which images of a person ask, and which are there to be found: as in Market-1501 and CUHK03."""

from collections.abc import Mapping, Sequence

import numpy as np


def draw_queries(
    by_camera: Mapping[int, Sequence[str]], random: np.random.Generator, *, by_image: bool
) -> set[str]:
    """Draw one query of each camera, such that all have a right answer in what is left.

    Args:
        by_camera: a person's images by the camera that took them.
        random: where the draws come from.
        by_image: for data of one camera: one query of all images, if any is left then.

    Returns:
        Some of the images; none where the person can't be searched for. Without `by_image` that
        is anybody whom one camera alone saw: all that is left would be ignored.

    >>> random = np.random.default_rng(0)
    >>> sorted(draw_queries({1: ["a"], 2: ["b"], 3: ["c"]}, random, by_image=False))
    ['a', 'b']
    """
    if by_image:
        paths = [path for _, each in sorted(by_camera.items()) for path in each]
        return {paths[int(random.integers(len(paths)))]} if len(paths) > 1 else set()
    if len(by_camera) < 2:
        return set()
    drawn = {
        camera_id: paths[int(random.integers(len(paths)))]
        for camera_id, paths in sorted(by_camera.items())
    }
    # A query takes its camera's only image out of the gallery. Two cameras with images left answer
    # everybody; otherwise one camera has to keep its only image.
    only = [camera_id for camera_id in sorted(by_camera) if len(by_camera[camera_id]) == 1]
    if len(by_camera) - len(only) < 2:
        del drawn[only[int(random.integers(len(only)))]]
    return set(drawn.values())
