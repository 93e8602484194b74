"""Draws a person: a walking body in three dimensions, seen under a yaw and a pitch, painted part by
part, far to near.

The body's own axes: x to its left, y up, z forward; heights are shares of the body's height, the
feet at 0. Round parts (torso, head, skirt, bags) are `Drum`s, stacks of ellipses: a stripe, a logo,
an open jacket or a face is a band on the drum's skin, of which only the side towards the camera is
painted. So the same person fits together from all sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, hypot, pi, sin
from random import Random

from PIL import Image, ImageDraw

from airnet_cli.core.data.generated.person import Colour, Person

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Pose:
    """How a person walks by."""

    yaw: float
    """0 faces the camera, pi shows the back. In radians."""
    phase: float
    """The place in the cycle of two steps, which is 2 pi long."""
    stride: float
    """Largest swing of the thigh in radians."""
    arms: float
    """Largest swing of the arms in radians."""
    lean: float


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the person is in the picture (pixels), and how the camera looks at them (radians)."""

    x: float
    ground: float
    height: float
    pitch: float
    squeeze: float
    """How much larger the top of the body is seen than its bottom (a high camera), as a share."""
    light: float
    """-1: light from the left, 1: from the right."""


def draw_person(image: Image.Image, person: Person, pose: Pose, stand: Stand) -> None:
    """Paint the person over the RGB image, with a shadow at the feet."""
    _Painter(image, person, pose, stand).paint()


def random_pose(rng: Random) -> Pose:
    """Pick one: mostly walking, seen from the front, the back, a side or between."""
    return Pose(
        yaw=rng.choice((0.0, 0.5, 1.0, 1.5)) * pi + rng.gauss(0, 0.35),
        phase=rng.uniform(0, 2 * pi),
        stride=rng.choice((0.08, 0.35, 0.5)) * rng.uniform(0.7, 1.2),
        arms=rng.uniform(0.1, 0.6),
        lean=rng.gauss(0, 0.02),
    )


@dataclass(frozen=True, slots=True)
class _Ring:
    """An ellipse of a drum: height, half width and depth, and the place of its centre."""

    y: float
    wide: float
    deep: float
    x: float = 0.0
    z: float = 0.0


_Drum = tuple[_Ring, ...]


def _slice(drum: _Drum, low: float, high: float) -> list[_Ring]:
    """The part of a drum between two heights, with rings set in at both."""
    rings = [_ring_at(drum, low)]
    rings += [ring for ring in drum if low < ring.y < high]
    rings.append(_ring_at(drum, high))
    return rings


def _ring_at(drum: _Drum, y: float) -> _Ring:
    if y <= drum[0].y:
        return drum[0]
    for below, above in pairwise(drum):
        if y <= above.y:
            share = (y - below.y) / (above.y - below.y)
            return _Ring(
                y,
                below.wide + share * (above.wide - below.wide),
                below.deep + share * (above.deep - below.deep),
                below.x + share * (above.x - below.x),
                below.z + share * (above.z - below.z),
            )
    return drum[-1]


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (factor < 1) or lighter."""
    red, green, blue = (max(0, min(255, round(part * factor))) for part in colour)
    return red, green, blue


class _Painter:
    """One person on one picture."""

    def __init__(self, image: Image.Image, person: Person, pose: Pose, stand: Stand) -> None:
        self.person, self.pose, self.stand = person, pose, stand
        # In this mode a fill with four values is blended over what is there.
        self.draw = ImageDraw.Draw(image, "RGBA")
        self.scale = stand.height * person.height
        self.sin, self.cos = sin(pose.yaw), cos(pose.yaw)
        self.sin_pitch, self.cos_pitch = sin(stand.pitch), cos(stand.pitch)
        self.drop = 0.0
        w = person.width
        hip = person.hip_height
        self.torso: _Drum = (
            _Ring(hip - 0.035, 0.088 * w, 0.066 * w),
            _Ring(hip + 0.03, 0.092 * w, 0.068 * w),
            _Ring(hip + 0.12, 0.083 * w, 0.060 * w),
            _Ring(0.74, 0.102 * w, 0.068 * w),
            _Ring(0.795, 0.106 * w, 0.064 * w),
            _Ring(0.815, 0.096 * w, 0.058 * w),
            _Ring(0.832, 0.070 * w, 0.048 * w),
            _Ring(0.847, 0.038 * w, 0.036 * w),
        )
        self.head: _Drum = tuple(
            _Ring(y, 0.056 * r, 0.064 * r, 0.0, 0.012)
            for y, r in (
                (0.862, 0.52),
                (0.878, 0.80),
                (0.90, 0.98),
                (0.93, 1.04),
                (0.96, 0.96),
                (0.983, 0.72),
                (0.997, 0.34),
            )
        )

    # Projection -----------------------------------------------------------------------------------

    def at(self, x: float, y: float, z: float) -> Point:
        """Project a point of the body to the picture."""
        y -= self.drop
        z += self.pose.lean * y
        across = x * self.cos + z * self.sin
        towards = -x * self.sin + z * self.cos
        widening = 1 + self.stand.squeeze * (y - 0.5)
        up = y + self.stand.squeeze * y * (y - 1) / 2
        up = up * self.cos_pitch - towards * self.sin_pitch
        return (
            self.stand.x + across * widening * self.scale,
            self.stand.ground - up * self.scale,
        )

    def towards(self, x: float, z: float) -> float:
        """How far a point is towards the camera."""
        return -x * self.sin + z * self.cos

    # Brushes --------------------------------------------------------------------------------------

    def band(
        self,
        drum: _Drum,
        low: float,
        high: float,
        fill: tuple[int, ...],
        start: float = -pi,
        stop: float = pi,
    ) -> None:
        """Paint the visible part of a band on a drum: between two heights and two angles.

        Angle 0 is the front, pi / 2 the left side.
        """
        left: list[Point] = []
        right: list[Point] = []
        rings = _slice(drum, low, high)
        for index, ring in enumerate(rings):
            middle = -atan2(self.sin / ring.wide, self.cos / ring.deep)
            first, last = _overlap(start, stop, middle - pi / 2, middle + pi / 2)
            if last <= first:
                return
            # The rims of the band are arcs, as a camera from above sees them.
            steps = 4 if index in (0, len(rings) - 1) else 1
            arc = [self._on(ring, first + (last - first) * n / steps) for n in range(steps + 1)]
            if index == 0:
                left.append(arc[0])
                right.append(arc[-1])
                bottom = arc[1:-1]
            else:
                left.append(arc[0])
                right.append(arc[-1])
                top = arc[1:-1]
        self.draw.polygon([*left, *top, *reversed(right), *reversed(bottom)], fill=fill)

    def _on(self, ring: _Ring, angle: float) -> Point:
        return self.at(ring.x + ring.wide * sin(angle), ring.y, ring.z + ring.deep * cos(angle))

    def round(self, drum: _Drum, low: float, high: float) -> None:
        """Shade a drum so that it looks round: dark away from the light."""
        ring = _ring_at(drum, (low + high) / 2)
        middle = -atan2(self.sin / ring.wide, self.cos / ring.deep)
        side = -1 if self.stand.light > 0 else 1
        strength = 0.5 + 0.5 * abs(self.stand.light)
        for reach, alpha in ((0.25, 26), (0.75, 34), (1.15, 40)):
            edges = sorted((middle + side * reach, middle + side * pi / 2))
            self.band(drum, low, high, (0, 0, 0, round(alpha * strength)), *edges)
        edges = sorted((middle - side * 0.5, middle - side * 1.1))
        self.band(drum, low, high, (255, 255, 255, round(22 * strength)), *edges)

    def limb(
        self,
        start: tuple[float, float, float],
        end: tuple[float, float, float],
        radii: tuple[float, float],
        fill: Colour,
    ) -> None:
        """Paint a tapered, rounded limb, shaded along one side."""
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        r0, r1 = radii[0] * self.scale, radii[1] * self.scale
        length = hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length, (x1 - x0) / length
        if nx * self.stand.light > 0:
            nx, ny = -nx, -ny  # (nx, ny) now points away from the light
        for x, y, r in ((x0, y0, r0), (x1, y1, r1)):
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        self.draw.polygon(
            [
                (x0 + nx * r0, y0 + ny * r0),
                (x1 + nx * r1, y1 + ny * r1),
                (x1 - nx * r1, y1 - ny * r1),
                (x0 - nx * r0, y0 - ny * r0),
            ],
            fill=fill,
        )
        for inner, alpha in ((0.15, 38), (0.6, 40)):
            self.draw.polygon(
                [
                    (x0 + nx * r0, y0 + ny * r0),
                    (x1 + nx * r1, y1 + ny * r1),
                    (x1 + nx * r1 * inner, y1 + ny * r1 * inner),
                    (x0 + nx * r0 * inner, y0 + ny * r0 * inner),
                ],
                fill=(0, 0, 0, alpha),
            )

    # The body -------------------------------------------------------------------------------------

    def paint(self) -> None:
        """Paint all parts, far to near."""
        legs = [self._leg(side) for side in (-1, 1)]
        self.drop = min(ground for _, ground, _ in legs)
        self._shadow()
        parts: list[tuple[float, Callable[[], None]]] = [
            (depth - 1, draw) for depth, _, draw in legs
        ]
        parts.append((0.0, self._torso))
        parts.append((0.001, self._head))
        parts += [self._arm(side) for side in (-1, 1)]
        parts += self._bag()
        parts += self._loose_hair()
        for _, draw in sorted(parts, key=lambda part: part[0]):
            draw()

    def _shadow(self) -> None:
        x, y = self.at(0, self.drop, 0)
        for grow, alpha in ((1.0, 26), (0.8, 30), (0.55, 38)):
            w, h = 0.19 * self.scale * grow, 0.035 * self.scale * grow
            shift = -self.stand.light * 0.05 * self.scale
            self.draw.ellipse((x - w + shift, y - h, x + w + shift, y + h), fill=(0, 0, 0, alpha))

    def _leg(self, side: int) -> tuple[float, float, Callable[[], None]]:
        """One leg: its depth, the height of its sole, and its painting."""
        person, w = self.person, self.person.width
        swing = self.pose.stride * sin(self.pose.phase + (pi if side > 0 else 0))
        bend = self.pose.stride * 1.1 * max(0.0, cos(self.pose.phase + (pi if side > 0 else 0)))
        half = person.hip_height * 0.49
        x = side * 0.045 * w
        hip = (x, person.hip_height, 0.0)
        knee = (x, hip[1] - half * cos(swing), half * sin(swing))
        ankle = (x, knee[1] - half * cos(swing - bend), knee[2] + half * sin(swing - bend))
        toe_lift = 0.03 * sin(swing) - 0.04 * sin(bend)
        toe = (x + side * 0.012, ankle[1] - 0.012 + toe_lift, ankle[2] + 0.07)

        def draw() -> None:
            far = 0.82 if self.towards(x, knee[2]) < -0.02 else 1.0
            skin, cloth = shade(person.skin, far), shade(person.lower, far)
            self.limb(
                (x, ankle[1] - 0.004, ankle[2] - 0.012),
                toe,
                (0.024, 0.017),
                shade(person.shoes, far),
            )
            if person.lower_kind == "trousers":
                self.limb(knee, ankle, (0.037 * w, 0.029 * w), cloth)
                self.limb(hip, knee, (0.055 * w, 0.038 * w), cloth)
            else:
                self.limb(knee, ankle, (0.029 * w, 0.019 * w), skin)
                self.limb(hip, knee, (0.046 * w, 0.031 * w), skin)
            if person.lower_kind == "shorts":
                end = (x, *(hip[i] + 0.86 * (knee[i] - hip[i]) for i in (1, 2)))
                self.limb(hip, (end[0], end[1], end[2]), (0.056 * w, 0.048 * w), cloth)

        return self.towards(x, knee[2]), ankle[1] - 0.028, draw

    def _torso(self) -> None:
        person, torso = self.person, self.torso
        bottom, top = torso[0].y, torso[-1].y
        self.limb((0, 0.82, 0.0), (0, 0.88, 0.008), (0.03, 0.03), shade(person.skin, 0.88))
        waist = person.hip_height + 0.045
        if person.lower_kind in ("skirt", "dress"):
            self._skirt(person.lower, bottom=person.hip_height * 0.56)
        else:
            self.band(torso, bottom, waist, person.lower)
        self.band(torso, waist, top, person.upper)
        self._pattern(torso, waist, top)
        # The neckline shows some skin at the front.
        self.band(torso, top - 0.03, top, person.skin, -0.8, 0.8)
        if person.jacket is not None:
            self._jacket(person.jacket, waist, top)
        self.round(torso, bottom, top)
        self.band(torso, waist - 0.004, waist + 0.003, (0, 0, 0, 60))

    def _skirt(self, colour: Colour, bottom: float, start: float = -pi, stop: float = pi) -> None:
        top = _ring_at(self.torso, self.person.hip_height + 0.05)
        sway = 0.25 * self.pose.stride
        drum: _Drum = (
            _Ring(bottom, top.wide * 1.28, top.deep * 1.25 + 0.25 * sway),
            _Ring(self.person.hip_height - 0.03, top.wide * 1.12, top.deep * 1.12),
            top,
        )
        self.band(drum, bottom, top.y, colour, start, stop)
        for angle in (-2.4, -1.5, -0.6, 0.3, 1.2, 2.1):
            self.band(drum, bottom, top.y - 0.05, (0, 0, 0, 36), angle, angle + 0.14)
        self.round(drum, bottom, top.y)

    def _pattern(self, drum: _Drum, low: float, high: float) -> None:
        person, second = self.person, self.person.second
        span = high - low
        if person.pattern == "hoops":
            for n in range(4):
                start = low + span * (n + 0.5) / 4.4
                self.band(drum, start, start + span * 0.11, second)
        elif person.pattern == "pinstripes":
            for n in range(10):
                angle = -pi + n * pi / 5
                self.band(drum, low, high, second, angle, angle + 0.24)
        elif person.pattern == "checks":
            for n in range(4):
                start = low + span * (n + 0.4) / 4.2
                self.band(drum, start, start + span * 0.10, (*second, 170))
            for n in range(8):
                angle = -pi + n * pi / 4
                self.band(drum, low, high, (*second, 150), angle, angle + 0.3)
        elif person.pattern == "two_tone":
            self.band(drum, low + span * 0.52, high, second)
        elif person.pattern == "logo":
            self.band(drum, low + span * 0.42, low + span * 0.78, second, -0.75, 0.75)
            self.band(drum, low + span * 0.42, low + span * 0.78, second, pi - 0.75, pi + 0.75)

    def _jacket(self, colour: Colour, waist: float, top: float) -> None:
        low = waist - 0.045
        edge = 0.48  # radians from the middle of the front to the jacket's edge
        if self.person.coat:
            self._skirt(colour, self.person.hip_height * 0.52, edge, 2 * pi - edge)
        self.band(self.torso, low, top, colour, edge, 2 * pi - edge)
        for angle in (-edge - 0.05, edge - 0.05):
            self.band(self.torso, low, top, (0, 0, 0, 70), angle, angle + 0.1)

    def _arm(self, side: int) -> tuple[float, Callable[[], None]]:
        person, w = self.person, self.person.width
        swing = -self.pose.arms * sin(self.pose.phase + (pi if side > 0 else 0))
        if person.bag in ("handbag", "suitcase") and side == 1:
            swing *= 0.25
        shoulder = (side * 0.094 * w, 0.785, 0.0)
        out = side * 0.022
        elbow = (shoulder[0] + out, shoulder[1] - 0.15 * cos(swing), 0.155 * sin(swing))
        bend = swing + 0.25 + 0.2 * self.pose.arms
        wrist = (elbow[0] + 0.2 * out, elbow[1] - 0.145 * cos(bend), elbow[2] + 0.145 * sin(bend))
        depth = self.towards(shoulder[0], elbow[2] * 0.5)

        def draw() -> None:
            far = 0.84 if depth < -0.03 else 0.95
            skin = shade(person.skin, far)
            sleeve = shade(person.jacket or person.upper, far)
            if person.jacket is None and person.pattern == "two_tone":
                sleeve = shade(person.second, far)
            hand = (wrist[0], wrist[1] - 0.02, wrist[2] + 0.006)
            self.limb(wrist, hand, (0.018, 0.02), skin)
            fore = skin if person.short_sleeves else sleeve
            narrow = 0.021 if person.short_sleeves else 0.027
            self.limb(elbow, wrist, (narrow * 1.2 * w, narrow * w), fore)
            self.limb(shoulder, elbow, (0.032 * w, 0.030 * w), sleeve)
            if person.jacket is None and person.pattern in ("hoops", "checks"):
                self._rings(shoulder, elbow, 0.033 * w, shade(person.second, far))
                if not person.short_sleeves:
                    self._rings(elbow, wrist, 0.029 * w, shade(person.second, far))

        return depth, draw

    def _rings(
        self,
        start: tuple[float, float, float],
        end: tuple[float, float, float],
        radius: float,
        fill: Colour,
    ) -> None:
        """Paint two rings around a sleeve."""
        (x0, y0), (x1, y1) = self.at(*start), self.at(*end)
        length = hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y0 - y1) / length * radius * self.scale, (x1 - x0) / length * radius * self.scale
        for share in (0.25, 0.7):
            corners = []
            for along, sign in ((share, 1), (share, -1), (share + 0.2, -1), (share + 0.2, 1)):
                x, y = x0 + along * (x1 - x0), y0 + along * (y1 - y0)
                corners.append((x + sign * nx, y + sign * ny))
            self.draw.polygon(corners, fill=fill)

    # Head -----------------------------------------------------------------------------------------

    def _head(self) -> None:
        person, head = self.person, self.head
        low, high = head[0].y, head[-1].y
        if person.hair_style == "bald":
            self.band(head, low, high, person.skin)
        else:
            nape = 0.885 if person.hair_style == "short" else low
            self.band(head, low, high, person.skin)
            self.band(head, nape, high, person.hair)
            self.band(head, low, 0.958, person.skin, -1.15, 1.15)
        dark = shade(person.skin, 0.35)
        for angle in (-0.42, 0.42):
            self.band(head, 0.925, 0.936, dark, angle - 0.13, angle + 0.13)
        self.band(head, 0.888, 0.893, shade(person.skin, 0.6), -0.3, 0.3)
        if person.hat != "none":
            self._hat()
        self.round(head, low, high)

    def _hat(self) -> None:
        colour = self.person.hat_colour
        brim = 0.948 if self.person.hat == "cap" else 0.94
        hat: _Drum = tuple(
            _Ring(y, 0.063 * r, 0.071 * r, 0.0, 0.012)
            for y, r in ((brim, 1.0), (0.975, 0.94), (1.0, 0.7), (1.014, 0.3))
        )
        self.band(hat, brim, 1.014, colour)
        if self.person.hat == "beanie":
            self.band(hat, brim, brim + 0.018, shade(colour, 0.75))
        elif self.towards(0, 1) > -0.5:
            (x0, y0), (x1, y1) = self.at(-0.05, brim, 0.05), self.at(0.05, brim, 0.05)
            (x2, y2), (x3, y3) = (
                self.at(0.035, brim - 0.008, 0.125),
                self.at(-0.035, brim - 0.008, 0.125),
            )
            thick = 0.012 * self.scale
            self.draw.polygon(
                [(x0, y0 - thick), (x1, y1 - thick), (x2, y2), (x3, y3), (x0, y0)],
                fill=shade(colour, 0.8),
            )
            self.draw.polygon([(x0, y0), (x1, y1), (x2, y2), (x3, y3)], fill=shade(colour, 0.65))

    def _loose_hair(self) -> list[tuple[float, Callable[[], None]]]:
        """Hair that falls below the head: behind the body when it faces the camera."""
        person = self.person
        length = {"bob": 0.865, "long": 0.74, "ponytail": 0.76}.get(person.hair_style)
        if length is None:
            return []
        behind = self.towards(0, -1)
        if person.hair_style == "ponytail":

            def draw_tail() -> None:
                self.limb((0, 0.95, -0.058), (0, length, -0.085), (0.022, 0.014), person.hair)

            return [(behind * 0.1, draw_tail)]

        drum: _Drum = (
            _Ring(length, 0.058, 0.036, 0.0, -0.038),
            _Ring(0.87, 0.066, 0.050, 0.0, -0.018),
            _Ring(0.95, 0.058, 0.055, 0.0, -0.006),
        )

        def draw_hair() -> None:
            self.band(drum, length, 0.95, shade(person.hair, 0.92))
            self.round(drum, length, 0.95)

        return [(0.1 * behind - 0.0005, draw_hair)]

    # Bags -----------------------------------------------------------------------------------------

    def _bag(self) -> list[tuple[float, Callable[[], None]]]:
        person = self.person
        w, colour = person.width, person.bag_colour
        if person.bag == "none":
            return []
        if person.bag == "backpack":
            z = -0.068 * w - 0.04
            pack: _Drum = (
                _Ring(0.585, 0.078, 0.042, 0.0, z),
                _Ring(0.61, 0.088, 0.055, 0.0, z),
                _Ring(0.74, 0.084, 0.052, 0.0, z),
                _Ring(0.80, 0.070, 0.04, 0.0, z),
                _Ring(0.815, 0.045, 0.03, 0.0, z),
            )

            def draw_pack() -> None:
                self.band(pack, 0.585, 0.815, colour)
                self.band(pack, 0.62, 0.69, shade(colour, 0.78), pi - 0.8, pi + 0.8)
                self.round(pack, 0.585, 0.815)

            def draw_straps() -> None:
                for angle in (-0.72, 0.72):
                    self.band(self.torso, 0.66, 0.835, colour, angle - 0.16, angle + 0.16)

            return [(self.towards(0, z), draw_pack), (0.0005, draw_straps)]
        x = 0.155 * w
        if person.bag == "suitcase":
            centre, size, height, top = (x + 0.03, -0.06), (0.05, 0.075), (0.035, 0.27), 0.43
        elif person.bag == "handbag":
            centre, size, height, top = (x, 0.035), (0.03, 0.07), (0.32, 0.45), 0.5
        else:
            centre, size, height, top = (x - 0.02, -0.01), (0.032, 0.085), (0.44, 0.58), 0.58
        case: _Drum = (
            _Ring(height[0], size[0] * 0.9, size[1] * 0.92, *centre),
            _Ring(height[0] + 0.02, *size, *centre),
            _Ring(height[1] - 0.02, *size, *centre),
            _Ring(height[1], size[0] * 0.8, size[1] * 0.85, *centre),
        )

        def draw_case() -> None:
            handle_end = (centre[0], height[1], centre[1])
            self.limb((centre[0], top, centre[1]), handle_end, (0.007, 0.007), shade(colour, 0.6))
            self.band(case, height[0], height[1], colour)
            self.band(case, height[1] - 0.045, height[1] - 0.03, shade(colour, 0.65))
            self.round(case, height[0], height[1])

        parts: list[tuple[float, Callable[[], None]]] = [
            (self.towards(centre[0], 0.0) + 0.02, draw_case)
        ]
        if person.bag == "shoulder_bag":

            def draw_strap() -> None:
                # From the right shoulder across chest and back to the bag at the left hip.
                for turn in (0.0, pi):
                    for n in range(8):
                        angle = (-0.75 + 1.9 * n / 8) * (1 if turn == 0.0 else -1) + turn
                        y = 0.82 - 0.26 * n / 8
                        ends = sorted((angle - 0.14, angle + 0.24))
                        self.band(self.torso, y - 0.045, y, shade(colour, 0.8), *ends)

            parts.append((0.0005, draw_strap))
        return parts


def _overlap(start: float, stop: float, first: float, last: float) -> tuple[float, float]:
    """The common part of two ranges of angles, full turns apart; the second is half a turn."""
    best = (0.0, 0.0)
    for turn in (-2 * pi, 0.0, 2 * pi):
        low, high = max(start + turn, first), min(stop + turn, last)
        if high - low > best[1] - best[0]:
            best = (low, high)
    if stop - start >= 2 * pi:
        return first, last
    return best
