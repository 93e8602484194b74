"""The six places where the generated cameras hang, as wide pictures, and what stands in the way in
front of people.

A place is drawn once per seed and process; each image shows another window of it.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from airnet_cli.core.data.generated.figure import shade
from airnet_cli.core.data.generated.person import Colour

PLACE_WIDTH, PLACE_HEIGHT = 1800, 430
"""In drawing pixels: a standing person is about 340 high."""


@lru_cache(maxsize=16)
def place(seed: int, camera_id: int) -> Image.Image:
    """Draw the place that this camera sees: RGB, `PLACE_WIDTH` x `PLACE_HEIGHT`."""
    rng = Random(f"{seed}/place/{camera_id}")
    image = Image.new("RGB", (PLACE_WIDTH, PLACE_HEIGHT))
    draw = ImageDraw.Draw(image, "RGBA")
    _PLACES[(camera_id - 1) % len(_PLACES)](draw, rng)
    return _weathered(image, rng)


def draw_obstacle(image: Image.Image, rng: Random) -> None:
    """Paint something in front of the person: a pole, a car, a bush, a railing or a bin."""
    draw = ImageDraw.Draw(image, "RGBA")
    rng.choice((_pole, _parked_car, _bush, _railing, _bin))(draw, image.size, rng)


# Places -------------------------------------------------------------------------------------------


def _shops(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    ground = 262
    draw.rectangle((0, 0, PLACE_WIDTH, ground), fill=(196, 186, 170))
    x = 0
    while x < PLACE_WIDTH:
        width = rng.randint(190, 300)
        front = rng.choice(
            (
                (122, 44, 40),
                (38, 70, 92),
                (60, 84, 58),
                (206, 196, 176),
                (52, 48, 50),
                (158, 122, 60),
            )
        )
        draw.rectangle((x, 0, x + width, ground), fill=front)
        draw.rectangle((x + 14, 62, x + width - 14, ground - 26), fill=(84, 98, 108))
        _goods(draw, rng, (x + 18, 80, x + width - 18, ground - 28))
        draw.polygon(
            [(x + 20, 62), (x + 90, 62), (x + 30, ground - 26), (x + 14, ground - 26)],
            fill=(255, 255, 255, 36),
        )
        door = x + rng.randint(30, width - 80)
        draw.rectangle((door, 70, door + 54, ground), fill=shade(front, 0.7))
        draw.rectangle((door + 7, 80, door + 47, ground - 16), fill=(112, 128, 136))
        awning = rng.choice(((176, 44, 40), (40, 96, 70), (228, 222, 206), (44, 72, 130)))
        for n in range(0, width, 26):
            colour = awning if n % 52 == 0 else (236, 232, 222)
            draw.polygon(
                [(x + n, 20), (x + n + 26, 20), (x + n + 30, 62), (x + n + 2, 62)], fill=colour
            )
        draw.rectangle((x, 0, x + 6, ground), fill=shade(front, 0.55))
        x += width
    _paving(draw, ground, (172, 166, 156), 46)


def _bricks(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    ground = 236
    draw.rectangle((0, 0, PLACE_WIDTH, ground), fill=(142, 122, 112))
    for row, y in enumerate(range(0, ground, 11)):
        for x in range(-20 + 15 * (row % 2), PLACE_WIDTH, 30):
            tone = shade((152, 78, 60), rng.uniform(0.8, 1.15))
            draw.rectangle((x, y, x + 27, y + 8), fill=tone)
    for x in range(rng.randint(0, 150), PLACE_WIDTH, 330):
        draw.rectangle((x, 10, x + 110, 150), fill=(222, 218, 208))
        draw.rectangle((x + 9, 18, x + 101, 142), fill=(70, 84, 98))
        draw.rectangle((x + 52, 18, x + 58, 142), fill=(222, 218, 208))
        draw.polygon([(x + 12, 20), (x + 40, 20), (x + 12, 100)], fill=(255, 255, 255, 50))
        if rng.random() < 0.6:
            colour = rng.choice(((230, 196, 60), (60, 130, 190), (190, 60, 110)))
            draw.rectangle((x + 170, 90, x + 250, 190), fill=colour)
            draw.rectangle((x + 180, 102, x + 240, 130), fill=(245, 245, 240))
    draw.rectangle((0, ground - 14, PLACE_WIDTH, ground), fill=(112, 106, 100))
    _paving(draw, ground, (150, 148, 146), 60)


def _road(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    draw.rectangle((0, 0, PLACE_WIDTH, 60), fill=(176, 196, 214))
    for x in range(0, PLACE_WIDTH, 150):
        top = rng.randint(-30, 40)
        tone = rng.choice(((186, 170, 146), (150, 146, 150), (168, 132, 112), (204, 200, 190)))
        draw.rectangle((x, top, x + 150, 120), fill=tone)
        for wx in range(x + 14, x + 140, 34):
            draw.rectangle((wx, top + 18, wx + 18, 100), fill=(86, 98, 110))
    draw.rectangle((0, 112, PLACE_WIDTH, 140), fill=(168, 166, 160))
    draw.rectangle((0, 136, PLACE_WIDTH, PLACE_HEIGHT), fill=(94, 95, 98))
    x = 10
    while x < PLACE_WIDTH:
        _car(draw, x, 178, rng.uniform(0.8, 1.0), rng)
        x += rng.randint(240, 420)
    for x in range(0, PLACE_WIDTH, 170):
        draw.polygon([(x, 232), (x + 80, 232), (x + 74, 240), (x - 8, 240)], fill=(214, 212, 204))
    for x in range(40, PLACE_WIDTH, 620):
        for n in range(6):
            left = x + n * 46
            draw.polygon(
                [(left, 262), (left + 24, 262), (left + 8, 420), (left - 22, 420)],
                fill=(216, 214, 208, 220),
            )


def _park(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    draw.rectangle((0, 0, PLACE_WIDTH, 170), fill=(170, 196, 206))
    for _ in range(260):
        x, y = rng.randint(-40, PLACE_WIDTH), rng.randint(-20, 150)
        radius = rng.randint(18, 46)
        tone = shade((72, 112, 54), rng.uniform(0.6, 1.3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)
    draw.rectangle((0, 158, PLACE_WIDTH, 258), fill=(104, 142, 70))
    for x in range(rng.randint(20, 90), PLACE_WIDTH, 190):
        width = rng.randint(14, 26)
        draw.rectangle((x, 40, x + width, 205), fill=(92, 72, 54))
        draw.rectangle((x + width - 6, 40, x + width, 205), fill=(66, 50, 40))
        draw.ellipse((x - 30, 196, x + width + 40, 212), fill=(0, 0, 0, 50))
    for _ in range(2500):
        x, y = rng.randint(0, PLACE_WIDTH), rng.randint(160, 256)
        draw.line((x, y, x + rng.randint(-3, 3), y - rng.randint(4, 9)), fill=(70, 116, 48, 150))
    for x in range(rng.randint(80, 300), PLACE_WIDTH, 520):
        for y in (180, 194, 208):
            draw.rectangle((x, y, x + 120, y + 8), fill=(128, 88, 54))
        for dx in (8, 104):
            draw.rectangle((x + dx, 180, x + dx + 7, 236), fill=(50, 48, 46))
    draw.rectangle((0, 254, PLACE_WIDTH, PLACE_HEIGHT), fill=(188, 172, 142))
    for _ in range(1600):
        x, y = rng.randint(0, PLACE_WIDTH), rng.randint(256, PLACE_HEIGHT)
        draw.ellipse((x, y, x + 4, y + 2), fill=(140, 124, 98, 120))


def _plaza(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    ground = 150
    draw.rectangle((0, 0, PLACE_WIDTH, ground), fill=(150, 158, 166))
    for x in range(0, PLACE_WIDTH, 74):
        tone = shade((104, 134, 154), rng.uniform(0.75, 1.2))
        draw.rectangle((x + 4, 0, x + 70, ground - 12), fill=tone)
        draw.polygon([(x + 6, 0), (x + 34, 0), (x + 6, 80)], fill=(255, 255, 255, 44))
        draw.rectangle((x, 0, x + 4, ground), fill=(196, 198, 200))
    _paving(draw, ground, (186, 180, 172), 74)
    for x in range(rng.randint(40, 200), PLACE_WIDTH, 400):
        draw.rectangle((x, 160, x + 130, 196), fill=(140, 136, 130))
        for _ in range(26):
            bx, by = x + rng.randint(0, 130), rng.randint(126, 166)
            tone = shade((66, 108, 60), rng.uniform(0.7, 1.3))
            draw.ellipse((bx - 14, by - 12, bx + 14, by + 12), fill=tone)
        draw.rectangle((x + 240, 60, x + 252, 215), fill=(92, 94, 98))


def _underpass(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    ground = 220
    draw.rectangle((0, 0, PLACE_WIDTH, ground), fill=(168, 166, 150))
    for y in range(0, ground, 26):
        for x in range(0, PLACE_WIDTH, 26):
            tone = shade((186, 186, 170), rng.uniform(0.88, 1.06))
            draw.rectangle((x + 1, y + 1, x + 24, y + 24), fill=tone)
    draw.rectangle((0, 104, PLACE_WIDTH, 130), fill=rng.choice(((34, 92, 132), (150, 60, 40))))
    for x in range(rng.randint(60, 240), PLACE_WIDTH, 360):
        frame = rng.choice(((200, 190, 90), (70, 110, 160), (170, 80, 120), (80, 140, 110)))
        draw.rectangle((x, 34, x + 90, 168), fill=(70, 70, 70))
        draw.rectangle((x + 5, 39, x + 85, 163), fill=frame)
        draw.ellipse((x + 20, 60, x + 70, 110), fill=shade(frame, 1.3))
        draw.rectangle((x + 14, 124, x + 76, 134), fill=(240, 240, 230))
    _paving(draw, ground, (120, 116, 108), 52)
    for x in range(100, PLACE_WIDTH, 300):
        for n in range(8):
            draw.ellipse(
                (x - 16 * n, -14 * n, x + 90 + 16 * n, 60 + 34 * n), fill=(255, 240, 190, 12)
            )


_PLACES: tuple[Callable[[ImageDraw.ImageDraw, Random], None], ...] = (
    _shops,
    _bricks,
    _road,
    _park,
    _plaza,
    _underpass,
)


# What places are made of --------------------------------------------------------------------------


def _paving(draw: ImageDraw.ImageDraw, ground: int, colour: Colour, slab: int) -> None:
    draw.rectangle((0, ground, PLACE_WIDTH, PLACE_HEIGHT), fill=colour)
    draw.rectangle((0, ground, PLACE_WIDTH, ground + 5), fill=shade(colour, 0.7))
    y, step = float(ground), 9.0
    while y < PLACE_HEIGHT:
        draw.line((0, y, PLACE_WIDTH, y), fill=shade(colour, 0.86), width=2)
        y, step = y + step, step * 1.35
    for x in range(-600, PLACE_WIDTH + 600, slab):
        lower = PLACE_WIDTH / 2 + (x - PLACE_WIDTH / 2) * 1.12
        draw.line((x, ground, lower, PLACE_HEIGHT), fill=shade(colour, 0.88), width=2)


def _goods(draw: ImageDraw.ImageDraw, rng: Random, box: tuple[int, int, int, int]) -> None:
    """Things in a shop window."""
    left, top, right, bottom = box
    for x in range(left, right - 24, 34):
        height = rng.randint(24, max(25, bottom - top - 10))
        tone = shade(
            rng.choice(
                ((214, 188, 150), (150, 64, 70), (80, 120, 150), (60, 60, 66), (190, 190, 120))
            ),
            rng.uniform(0.5, 0.9),
        )
        draw.rounded_rectangle((x, bottom - height, x + 24, bottom), radius=8, fill=tone)


def _car(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, rng: Random) -> None:
    """A car from its side; `base` is where the wheels stand, `size` 1 a length of 250."""
    colour = rng.choice(
        (
            (160, 30, 34),
            (230, 230, 228),
            (40, 44, 52),
            (50, 80, 140),
            (150, 154, 160),
            (88, 110, 84),
        )
    )

    def points(*values: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + px * size, base - py * size) for px, py in values]

    draw.ellipse((x, base - 8 * size, x + 250 * size, base + 10 * size), fill=(0, 0, 0, 70))
    draw.polygon(
        points((48, 52), (84, 88), (170, 88), (210, 54)),
        fill=shade(colour, 0.9),
    )
    draw.polygon(points((60, 54), (88, 82), (122, 82), (122, 54)), fill=(58, 68, 78))
    draw.polygon(points((128, 54), (128, 82), (166, 82), (196, 54)), fill=(58, 68, 78))
    draw.polygon(
        points((2, 16), (4, 44), (48, 54), (210, 56), (244, 44), (250, 16)),
        fill=colour,
    )
    draw.polygon(points((2, 16), (3, 28), (249, 28), (250, 16)), fill=shade(colour, 0.65))
    for wheel in (52, 198):
        for radius, tone in ((22, (24, 24, 26)), (12, (140, 142, 146))):
            cx, cy = x + wheel * size, base - 18 * size
            r = radius * size
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=tone)
    draw.rectangle(
        (x + 240 * size, base - 42 * size, x + 249 * size, base - 34 * size), fill=(250, 226, 160)
    )


def _weathered(image: Image.Image, rng: Random) -> Image.Image:
    """Give flat surfaces some grain at two sizes, and take the drawn edge off all lines."""
    image = image.filter(ImageFilter.GaussianBlur(1.0))
    for shrink in (2, 12):
        size = (PLACE_WIDTH // shrink, PLACE_HEIGHT // shrink)
        grain = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
        grain = grain.point([112 + value // 8 for value in range(256)])
        grain = grain.resize(image.size, Image.Resampling.BILINEAR)
        image = ImageChops.add(image, Image.merge("RGB", (grain,) * 3), 1, -128)
    return image


# Obstacles ----------------------------------------------------------------------------------------


def _pole(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    width = rng.randint(10, 22)
    x = rng.choice((rng.uniform(0.05, 0.3), rng.uniform(0.68, 0.92))) * size[0]
    colour = rng.choice(((96, 98, 102), (60, 70, 64), (150, 148, 140)))
    draw.rectangle((x, 0, x + width, size[1]), fill=colour)
    draw.rectangle((x, 0, x + width * 0.3, size[1]), fill=shade(colour, 1.25))
    draw.rectangle((x + width * 0.7, 0, x + width, size[1]), fill=shade(colour, 0.7))


def _parked_car(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    x = rng.choice((-170, -130, 0.62 * size[0], 0.75 * size[0]))
    _car(draw, x, size[1] * rng.uniform(1.0, 1.06), rng.uniform(1.0, 1.3), rng)


def _bush(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    centre = rng.choice((0.05, 0.2, 0.8, 0.95)) * size[0]
    for _ in range(46):
        x = rng.gauss(centre, 0.17 * size[0])
        y = size[1] * rng.uniform(0.78, 1.03)
        radius = rng.randint(8, 20)
        tone = shade((62, 100, 50), rng.uniform(0.6, 1.35))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)


def _railing(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    top = size[1] * rng.uniform(0.66, 0.8)
    colour = rng.choice(((60, 64, 68), (170, 172, 174), (120, 40, 40)))
    for y in (top, top + 46):
        draw.rectangle((0, y, size[0], y + 6), fill=colour)
    for x in range(rng.randint(-30, 0), size[0], 56):
        draw.rectangle((x, top, x + 5, size[1]), fill=shade(colour, 0.85))


def _bin(draw: ImageDraw.ImageDraw, size: tuple[int, int], rng: Random) -> None:
    x = rng.choice((-20.0, 0.72 * size[0]))
    top = size[1] * rng.uniform(0.66, 0.78)
    colour = rng.choice(((52, 84, 64), (70, 72, 76), (150, 60, 40)))
    draw.rounded_rectangle((x, top, x + 70, size[1] + 20), radius=10, fill=colour)
    draw.rectangle((x + 44, top + 8, x + 70, size[1]), fill=(0, 0, 0, 60))
    draw.rectangle((x + 14, top + 18, x + 56, top + 30), fill=shade(colour, 0.45))
