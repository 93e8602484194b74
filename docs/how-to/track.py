"""A tracker that links the people of a video by their embeddings alone, frame by frame.

    python docs/how-to/track.py runs/NAME -o track.png

The video is drawn by airnet's generator: people who do not exist walk through a street, behind each
other and out of the picture and in again. So it is known who is who, and the links can be counted.
A video of your own needs a detector, which airnet has not: it starts where there are boxes.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from airnet_cli.core.data.demo.figure import Pose, Stand, draw_person
from airnet_cli.core.data.demo.people import population
from airnet_cli.core.data.demo.scene import PLACE_HEIGHT, PLACE_WIDTH, place

SCALE = 3  # drawing pixels per pixel of the video
FRAMES = 48


# The tracker --------------------------------------------------------------------------------------


@dataclass
class Track:
    """One person, as far as the tracker knows."""

    number: int
    appearance: np.ndarray  # (D,), length 1: a running mean of embeddings
    last_frame: int


class Tracker:
    """Links detections to the people seen before them, by cosine."""

    def __init__(self, *, threshold: float, forget_after: int) -> None:
        """Links need a cosine of `threshold`; tracks not seen for `forget_after` frames end."""
        self.threshold = threshold
        self.forget_after = forget_after
        self.tracks: list[Track] = []
        self.frame = 0
        self.begun = 0

    def update(self, embeddings: np.ndarray) -> list[int]:
        """The track number of each detection of the next frame, from its embedding (N, D)."""
        self.frame += 1
        self.tracks = [t for t in self.tracks if self.frame - t.last_frame <= self.forget_after]
        rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        numbers = [0] * len(rows)
        free = list(self.tracks)
        if len(rows) and free:
            scores = rows @ np.stack([track.appearance for track in free]).T  # (N, tracks)
            # The best pair first, each detection and each track once.
            for flat in np.argsort(-scores, axis=None):
                row, column = divmod(int(flat), len(free))
                if scores[row, column] < self.threshold:
                    break
                if not numbers[row] and free[column].last_frame != self.frame:
                    numbers[row] = self._see(free[column], rows[row])
        for row, number in enumerate(numbers):
            if not number:
                self.begun += 1
                self.tracks.append(Track(self.begun, rows[row], self.frame))
                numbers[row] = self.begun
        return numbers

    def _see(self, track: Track, row: np.ndarray) -> int:
        mean = 0.9 * track.appearance + 0.1 * row
        track.appearance = mean / np.linalg.norm(mean)
        track.last_frame = self.frame
        return track.number


def track(
    frames: Iterator["Frame"], embed: Callable[[list[np.ndarray]], np.ndarray], tracker: Tracker
) -> Iterator[tuple["Frame", list[int]]]:
    """Each frame with the track number of each of its boxes; `embed` is an airnet `Embedder`."""
    for frame in frames:
        crops = [frame.pixels[top:bottom, left:right] for left, top, right, bottom in frame.boxes]
        yield frame, tracker.update(embed(crops))


# The video ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A picture of the street, and what a detector would say."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: list[tuple[int, int, int, int]]  # left, top, right, bottom
    people: list[int]  # who it is: what the tracker does not know


def video(seed: int, *, frames: int = FRAMES, people: int = 5) -> Iterator[Frame]:
    """People walk both ways through a street; the fastest leave it and come back."""
    rng = Random(f"{seed}/video")
    crowd = population(seed, people)
    walks = []
    for index in range(people):
        way = 1 if index % 2 else -1
        speed = way * PLACE_WIDTH / frames * rng.uniform(0.7, 1.6)
        walks.append((rng.uniform(0.1, 0.9) * PLACE_WIDTH, speed, rng.uniform(0.72, 0.9)))
    for time in range(frames):
        image = place(seed, 1).copy()
        boxes, shown = [], []
        for index in sorted(range(people), key=lambda i: walks[i][2]):  # the nearest one last
            start, speed, size = walks[index]
            x = (start + speed * time + 300) % (PLACE_WIDTH + 600) - 300  # round the block
            height = size * 340
            ground = PLACE_HEIGHT * (0.45 + 0.6 * size)
            yaw = pi / 2 if speed > 0 else 3 * pi / 2
            pose = Pose(yaw=yaw, phase=0.9 * time + index, stride=0.4, arms=0.4)
            draw_person(image, crowd[index], pose, Stand(x, ground, height, 0.12, -0.5))
            box = _detected(x, ground, height, rng)
            if box is not None:
                boxes.append(box)
                shown.append(index)
        size_px = (PLACE_WIDTH // SCALE, PLACE_HEIGHT // SCALE)
        yield Frame(np.asarray(image.resize(size_px, Image.Resampling.LANCZOS)), boxes, shown)


def _detected(
    x: float, ground: float, height: float, rng: Random
) -> tuple[int, int, int, int] | None:
    """A box around a person, a little off; None where most of it is outside of the picture."""
    width = 0.46 * height
    edges = [x - width / 2, ground - 1.03 * height, x + width / 2, ground + 0.03 * height]
    edges = [edge + rng.gauss(0, 0.015) * height for edge in edges]
    limits = (PLACE_WIDTH, PLACE_HEIGHT, PLACE_WIDTH, PLACE_HEIGHT)
    left, top, right, bottom = (
        round(min(max(edge, 0), limit) / SCALE) for edge, limit in zip(edges, limits, strict=True)
    )
    return (left, top, right, bottom) if (right - left) * SCALE > 0.6 * width else None


# What came of it ----------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442", "#ffffff")


def count_switches(tracked: list[tuple[Frame, list[int]]]) -> int:
    """How often somebody's track number is another one than when they were last seen."""
    last: dict[int, int] = {}
    switches = 0
    for frame, numbers in tracked:
        for person, number in zip(frame.people, numbers, strict=True):
            switches += last.get(person, number) != number
            last[person] = number
    return switches


def draw(tracked: list[tuple[Frame, list[int]]], path: Path, *, shown: int = 6) -> None:
    """Some of the frames under each other, boxes in the colour of their track."""
    pictures = []
    for frame, numbers in tracked[:: max(1, len(tracked) // shown)][:shown]:
        picture = Image.fromarray(frame.pixels)
        pen = ImageDraw.Draw(picture)
        for (left, top, right, bottom), number in zip(frame.boxes, numbers, strict=True):
            colour = COLOURS[(number - 1) % len(COLOURS)]
            pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
            pen.rectangle((left, top, left + 14, top + 12), fill=colour)
            pen.text((left + 4, top), str(number), fill="black")
        pictures.append(picture)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, (height + 4) * len(pictures)), "white")
    for place_, picture in enumerate(pictures):
        sheet.paste(picture, (0, place_ * (height + 4)))
    sheet.save(path)


def main(arguments: list[str] | None = None) -> None:
    """Track the people of a drawn video with a trained network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run folder or a checkpoint")
    parser.add_argument("-o", "--output", type=Path, default=Path("track.png"))
    parser.add_argument("--threshold", type=float, default=0.5, help="cosine that a link needs")
    parser.add_argument("--runtime", choices=("torch", "onnx", "openvino"), default="torch")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--seed", type=int, default=2)
    chosen = parser.parse_args(arguments)
    from airnet_cli import Embedder

    embedder = Embedder.load(chosen.model, device="cpu", runtime=chosen.runtime)
    tracker = Tracker(threshold=chosen.threshold, forget_after=FRAMES)
    tracked = list(track(video(chosen.seed, frames=chosen.frames), embedder, tracker))
    draw(tracked, chosen.output)
    boxes = sum(len(frame.boxes) for frame, _ in tracked)
    people = len({person for frame, _ in tracked for person in frame.people})
    print(
        f"{len(tracked)} frames, {boxes} boxes of {people} people: {tracker.begun} tracks, "
        f"{count_switches(tracked)} switches; {chosen.output}"
    )


if __name__ == "__main__":
    main()
