"""Draws a walking person as a camera sees them from any side, part by part, far to near.

The body's axes: x to its left, y up from the feet, z forward; lengths are shares of its height.
Torso, head, skirt and bags are "drums": stacks of ellipses. A stripe, a jacket or a face is a band
on a drum, a range of heights and angles. Only the part that faces the camera is painted, so a
person is consistent from all sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, hypot, pi, sin
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from airnet_cli.core.data.demo.people import Bag, Colour, Pattern, Person

Point = tuple[float, float]
"""x and y in the image, in pixels."""
_Spot = tuple[float, float, float]
"""x, y and z on the body."""


PATTERNS: dict[Pattern, tuple[tuple[float, float, float, float], ...]] = {
    "plain": (),
    "hoops": tuple((0.11 + 0.23 * n, 0.22 + 0.23 * n, -pi, pi) for n in range(4)),
    "pinstripes": tuple((0, 1, n * pi / 5, n * pi / 5 + 0.24) for n in range(10)),
    "checks": (
        *((0.09 + 0.24 * n, 0.19 + 0.24 * n, -pi, pi) for n in range(4)),
        *((0, 1, n * pi / 4, n * pi / 4 + 0.25) for n in range(8)),
    ),
    "two_tone": ((0.52, 1, -pi, pi),),
    "logo": ((0.42, 0.78, -0.75, 0.75), (0.42, 0.78, pi - 0.75, pi + 0.75)),
}
"""Bands of the pattern's colour: lowest and highest point, from 0 (waist) to 1 (shoulders), and
first and last angle, from 0 (front) over pi / 2 (the person's left) to 2 pi."""

BAGS: dict[Bag, tuple[float, ...]] = {
    "backpack": (0.585, 0.81, 0.088, 0.055, 0.0, -0.11),
    "handbag": (0.31, 0.45, 0.032, 0.075, 0.155, 0.035),
    "suitcase": (0.035, 0.27, 0.05, 0.075, 0.18, -0.05),
}
"""Bottom, top, half width, half depth; then x and z of the centre for a body of width 1."""


@dataclass(frozen=True, slots=True)
class Pose:
    """How a person walks by. All values are in radians."""

    yaw: float  # 0 faces the camera, pi shows the back
    phase: float  # the place in the cycle of two steps, which is 2 pi long
    stride: float  # largest swing of the thigh
    arms: float  # largest swing of the arms


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the person is in the image, and how the camera sees them."""

    x: float  # of the body's axis, in pixels
    ground: float  # y of the feet, in pixels
    height: float  # of an average person, in pixels
    pitch: float  # how far the camera looks down, in radians
    light: float  # from the left (-1) to the right (1)


def draw_person(image: Image.Image, person: Person, pose: Pose, stand: Stand) -> None:
    """Paint the person over the RGB image, with a shadow at the feet."""
    _Painter(image, person, pose, stand).paint()


def random_pose(rng: Random) -> Pose:
    """Choose one: mostly walking, seen from the front, the back, a side or between."""
    return Pose(
        yaw=rng.choice((0.0, 0.5, 1.0, 1.5)) * pi + rng.gauss(0, 0.35),
        phase=rng.uniform(0, 2 * pi),
        stride=rng.choice((0.08, 0.35, 0.5)) * rng.uniform(0.7, 1.2),
        arms=rng.uniform(0.1, 0.6),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (factor < 1) or lighter."""
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue


class _Ring(NamedTuple):
    """An ellipse of a drum: its height, half width, half depth, and the place of its centre."""

    y: float
    wide: float
    deep: float
    x: float = 0.0
    z: float = 0.0


_Drum = tuple[_Ring, ...]
_Part = tuple[float, Callable[[], None]]
"""How near to the camera it is, and what paints it."""


def _ring_at(drum: _Drum, y: float) -> _Ring:
    """The drum's ring at any height, interpolated; the end ring outside of the drum."""
    if y <= drum[0].y:
        return drum[0]
    for below, above in pairwise(drum):
        if y <= above.y:
            share = (y - below.y) / (above.y - below.y)
            return _Ring(*(a + share * (b - a) for a, b in zip(below, above, strict=True)))
    return drum[-1]


def _overlap(start: float, stop: float, first: float, last: float) -> tuple[float, float]:
    """The angles of a band within the half turn that the camera sees; empty if last <= first."""
    if stop - start >= 2 * pi:
        return first, last
    turns = (-2 * pi, 0.0, 2 * pi)
    common = [(max(start + turn, first), min(stop + turn, last)) for turn in turns]
    return max(common, key=lambda angles: angles[1] - angles[0])


class _Painter:
    """One person in one image."""

    def __init__(self, image: Image.Image, person: Person, pose: Pose, stand: Stand) -> None:
        self.person, self.pose, self.stand = person, pose, stand
        # In this mode, a fill with four values is blended with the image.
        self.draw = ImageDraw.Draw(image, "RGBA")
        self.scale = stand.height * person.height
        self.sin, self.cos = sin(pose.yaw), cos(pose.yaw)
        self.sin_pitch, self.cos_pitch = sin(stand.pitch), cos(stand.pitch)
        self.drop = 0.0  # the height of the lower sole, which stands on the ground
        w, hip = person.width, person.hip_height
        self.torso = (
            _Ring(hip - 0.035, 0.088 * w, 0.066 * w),
            _Ring(hip + 0.03, 0.092 * w, 0.068 * w),
            _Ring(hip + 0.12, 0.083 * w, 0.060 * w),
            _Ring(0.74, 0.102 * w, 0.068 * w),
            _Ring(0.795, 0.106 * w, 0.064 * w),
            _Ring(0.832, 0.070 * w, 0.048 * w),
            _Ring(0.847, 0.038 * w, 0.036 * w),
        )

    def at(self, x: float, y: float, z: float) -> Point:
        """Project a point of the body to the image."""
        up = (y - self.drop) * self.cos_pitch - self.nearness(x, z) * self.sin_pitch
        across = x * self.cos + z * self.sin
        return self.stand.x + across * self.scale, self.stand.ground - up * self.scale

    def nearness(self, x: float, z: float) -> float:
        """How far towards the camera a point is."""
        return z * self.cos - x * self.sin

    def band(
        self,
        drum: _Drum,
        fill: tuple[int, ...],
        low: float = -1.0,
        high: float = 2.0,
        start: float = -pi,
        stop: float = pi,
    ) -> None:
        """Paint the part of a band that faces the camera; without limits, the whole drum."""
        low, high = max(low, drum[0].y), min(high, drum[-1].y)
        inner = [ring for ring in drum if low < ring.y < high]
        arcs: list[list[Point]] = []  # one for each ring, five points from its right to its left
        for ring in (_ring_at(drum, low), *inner, _ring_at(drum, high)):
            middle = self._facing(ring)
            first, last = _overlap(start, stop, middle - pi / 2, middle + pi / 2)
            if last <= first:
                return
            angles = [first + (last - first) * n / 4 for n in range(5)]
            arcs.append([self._on(ring, angle) for angle in angles])
        left = [arc[-1] for arc in arcs[1:-1]]
        right = [arc[0] for arc in arcs[1:-1]]
        self.draw.polygon([*arcs[0], *left, *arcs[-1][::-1], *right[::-1]], fill=fill)

    def _on(self, ring: _Ring, angle: float) -> Point:
        return self.at(ring.x + ring.wide * sin(angle), ring.y, ring.z + ring.deep * cos(angle))

    def _facing(self, ring: _Ring) -> float:
        """The angle on a ring that faces the camera."""
        return atan2(-self.sin * ring.deep, self.cos * ring.wide)

    def drum(self, drum: _Drum, colour: Colour) -> None:
        """Paint a whole drum, round by light and shade."""
        self.band(drum, colour)
        self.round(drum)

    def round(self, drum: _Drum) -> None:
        """Shade a drum so that it looks round: dark on the side away from the light."""
        middle = self._facing(drum[len(drum) // 2])
        side = -1 if self.stand.light > 0 else 1
        strength = 0.5 + 0.5 * abs(self.stand.light)
        stripes = ((0.25, 1.6, 0, 30), (0.9, 1.6, 0, 55), (-1.1, -0.5, 255, 22))
        for near, far, tone, alpha in stripes:
            start, stop = sorted((middle + side * near, middle + side * far))
            fill = (tone, tone, tone, round(alpha * strength))
            self.band(drum, fill, start=start, stop=stop)

    def limb(self, start: _Spot, end: _Spot, radii: Point, fill: Colour) -> None:
        """Paint a tapered limb with round ends, shaded along one side."""
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        r0, r1 = radii[0] * self.scale, radii[1] * self.scale
        length = hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        if nx * self.stand.light > 0:
            nx, ny = -nx, -ny  # (nx, ny) now points away from the light
        for x, y, r in ((x0, y0, r0), (x1, y1, r1)):
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        for edge, colour in ((-1.0, fill), (0.3, (0, 0, 0, 65))):
            corners = [
                (x0 + nx * r0, y0 + ny * r0),
                (x1 + nx * r1, y1 + ny * r1),
                (x1 + nx * r1 * edge, y1 + ny * r1 * edge),
                (x0 + nx * r0 * edge, y0 + ny * r0 * edge),
            ]
            self.draw.polygon(corners, fill=colour)

    def paint(self) -> None:
        """Paint all parts, far to near."""
        legs = [self._leg(side) for side in (-1, 1)]
        self.drop = min(sole for _, sole in legs)
        x, y = self.at(0, self.drop, 0)
        for width in (0.19, 0.12):
            w, h = width * self.scale, 0.2 * width * self.scale
            self.draw.ellipse((x - w, y - h, x + w, y + h), fill=(0, 0, 0, 45))
        parts: list[_Part] = [(near - 1, draw) for (near, draw), _ in legs]
        parts += [(0.0, self._torso), (0.001, self._head)]
        parts += [self._arm(side) for side in (-1, 1)]
        parts += self._bag()
        if self.person.hair == "long":
            parts.append((0.1 * self.nearness(0, -1), self._long_hair))
        for _, draw in sorted(parts, key=lambda part: part[0]):
            draw()

    def _leg(self, side: int) -> tuple[_Part, float]:
        """One leg, and the height of its sole."""
        person, w = self.person, self.person.width
        phase = self.pose.phase + (pi if side > 0 else 0)
        swing = self.pose.stride * sin(phase)
        bend = self.pose.stride * 1.1 * max(0.0, cos(phase))
        half = person.hip_height * 0.49
        x = side * 0.045 * w
        hip = (x, person.hip_height, 0.0)
        knee = (x, hip[1] - half * cos(swing), half * sin(swing))
        ankle = (x, knee[1] - half * cos(swing - bend), knee[2] + half * sin(swing - bend))
        toe = (x + side * 0.012, ankle[1] - 0.012 + 0.03 * swing, ankle[2] + 0.06)
        near = self.nearness(x, knee[2])

        def draw() -> None:
            far = 0.82 if near < -0.02 else 1.0
            skin, cloth = shade(person.skin, far), shade(person.lower, far)
            is_long = person.lower_kind == "trousers"
            covers_thigh = person.lower_kind in ("trousers", "shorts")
            self.limb(ankle, toe, (0.022, 0.017), shade(person.shoes, far))
            radii = (0.037 * w, 0.029 * w) if is_long else (0.029 * w, 0.019 * w)
            self.limb(knee, ankle, radii, cloth if is_long else skin)
            radii = (0.055 * w, 0.042 * w) if covers_thigh else (0.046 * w, 0.031 * w)
            self.limb(hip, knee, radii, cloth if covers_thigh else skin)

        return (near, draw), ankle[1] - 0.028

    def _torso(self) -> None:
        person, torso = self.person, self.torso
        waist, top = person.hip_height + 0.045, torso[-1].y
        self.limb((0, 0.82, 0.0), (0, 0.88, 0.008), (0.03, 0.03), shade(person.skin, 0.88))
        if person.lower_kind in ("skirt", "dress"):
            ring = _ring_at(torso, waist)
            hem = _Ring(person.hip_height * 0.56, ring.wide * 1.28, ring.deep * 1.5)
            self.drum((hem, ring), person.lower)
        else:
            self.band(torso, person.lower, high=waist)
        self.band(torso, person.upper, low=waist)
        for low, high, start, stop in PATTERNS[person.pattern]:
            span = top - 0.02 - waist
            heights = (waist + low * span, waist + high * span)
            self.band(torso, person.pattern_colour, *heights, start, stop)
        self.band(torso, person.skin, top - 0.03, top, -0.8, 0.8)  # neckline
        if person.jacket is not None:
            self.band(torso, person.jacket, waist - 0.045, top, 0.48, 2 * pi - 0.48)
        if person.bag == "backpack":
            for angle in (-0.88, 0.56):
                self.band(torso, person.bag_colour, 0.66, 0.835, angle, angle + 0.32)
        self.round(torso)

    def _arm(self, side: int) -> _Part:
        person, w = self.person, self.person.width
        swing = -self.pose.arms * sin(self.pose.phase + (pi if side > 0 else 0))
        if person.bag in ("handbag", "suitcase") and side == 1:
            swing *= 0.25
        shoulder = (side * 0.094 * w, 0.785, 0.0)
        elbow = (shoulder[0] + side * 0.022, 0.785 - 0.15 * cos(swing), 0.155 * sin(swing))
        bend = swing + 0.25 + 0.2 * self.pose.arms
        wrist = (elbow[0] + side * 0.004, elbow[1] - 0.155 * cos(bend), elbow[2] + 0.15 * sin(bend))
        near = self.nearness(shoulder[0], elbow[2] * 0.5)

        def draw() -> None:
            far = 0.84 if near < -0.03 else 0.95
            skin = shade(person.skin, far)
            shirt = person.pattern_colour if person.pattern == "two_tone" else person.upper
            sleeve = shade(person.jacket or shirt, far)
            self.limb(wrist, (wrist[0], wrist[1] - 0.02, wrist[2]), (0.018, 0.02), skin)
            fore = skin if person.has_short_sleeves else sleeve
            self.limb(elbow, wrist, (0.028 * w, 0.023 * w), fore)
            self.limb(shoulder, elbow, (0.032 * w, 0.030 * w), sleeve)

        return near, draw

    def _head(self) -> None:
        person = self.person
        shape = ((0.862, 0.52), (0.89, 0.94), (0.93, 1.04), (0.96, 0.96), (0.983, 0.7), (1.0, 0.3))
        head = tuple(_Ring(y, 0.056 * r, 0.064 * r, 0.0, 0.012) for y, r in shape)
        self.band(head, person.skin)
        if person.hair != "bald":
            self.band(head, person.hair_colour, low=0.885)
            self.band(head, person.skin, high=0.958, start=-1.15, stop=1.15)
        for angle in (-0.55, 0.29):
            self.band(head, shade(person.skin, 0.35), 0.925, 0.936, angle, angle + 0.26)  # eye
        if person.hat is not None:
            hat = tuple(_Ring(y, 1.14 * wide, 1.14 * deep, x, z) for y, wide, deep, x, z in head)
            self.band(hat, person.hat, low=0.95)
            self.band(hat, shade(person.hat, 0.7), 0.945, 0.96)
        self.round(head)

    def _long_hair(self) -> None:
        colour = shade(self.person.hair_colour, 0.92)
        self.limb((0, 0.92, -0.02), (0, 0.78, -0.045), (0.062, 0.052), colour)

    def _bag(self) -> list[_Part]:
        person = self.person
        if person.bag == "none":
            return []
        low, high, *size, x, z = BAGS[person.bag]
        x, z = x * person.width, z * person.width
        heights = (low, low + 0.03, high - 0.03, high)
        rings = zip(heights, (0.9, 1.0, 1.0, 0.75), strict=True)
        box = tuple(_Ring(y, r * size[0], r * size[1], x, z) for y, r in rings)

        def draw() -> None:
            if person.bag != "backpack":
                handle = (x, 0.5, z)
                self.limb(handle, (x, high, z), (0.007, 0.007), shade(person.bag_colour, 0.6))
            self.drum(box, person.bag_colour)

        return [(self.nearness(x, z), draw)]
