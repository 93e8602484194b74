"""The six cameras of the demo: the place each one sees, and how its images differ from others'.

Pillow does the arithmetic on pixels, so the same version of Pillow gives the same bytes.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from airnet_cli.core.data.demo.figure import Stand, draw_person, random_pose, shade
from airnet_cli.core.data.demo.people import UPPER_COLOURS, Colour, Person, random_person

WIDTHS_PX, HEIGHTS_PX = (58, 70), (118, 138)
"""Smallest and largest size of images: the boxes of a detector vary around 64 x 128."""

DRAWING_SCALE = 3
"""Drawing pixels per image pixel."""
PLACE_WIDTH, PLACE_HEIGHT = 1800, 430
"""In drawing pixels: a standing person is about 340 high."""


@dataclass(frozen=True, slots=True)
class Camera:
    """What makes the images of one camera differ from those of the others."""

    wall: Colour
    window_px: tuple[int, int]  # width and height; (0, 0) is a park, with trees for a wall
    ground: Colour
    horizon: int  # where the ground begins, in drawing pixels from the top
    pitch: float  # how far the camera looks down, in radians
    light: float  # from the left (-1) to the right (1)
    gains: tuple[float, float, float]  # factors of red, green and blue
    saturation: float
    gamma: float  # above 1 darkens the middle tones
    black: float  # 0 to 255: haze raises it
    white: float  # 0 to 255: dim light lowers it
    sharpness: float  # the sensor's resolution as a share of the crop's
    noise: float  # largest deviation of a colour value, 0 to 255


# fmt: off
CAMERAS: tuple[Camera, ...] = (
    # Shops in the sun: warm, rich in contrast.
    Camera((158, 122, 84), (150, 170), (172, 166, 156), 262, 0.12, -0.8,
           (1.06, 1.0, 0.92), 1.12, 0.95, 4, 250, 1.0, 8),
    # A brick house in the shade: blue, dull.
    Camera((152, 78, 60), (90, 120), (150, 148, 146), 236, 0.20, 0.3,
           (0.95, 0.99, 1.05), 0.95, 1.02, 10, 230, 0.9, 8),
    # A road from above: haze.
    Camera((186, 170, 146), (30, 60), (94, 95, 98), 110, 0.42, 0.7,
           (1.0, 1.0, 0.98), 0.92, 0.94, 18, 245, 0.9, 7),
    # A park under trees: green.
    Camera((104, 142, 70), (0, 0), (188, 172, 142), 254, 0.08, -0.4,
           (0.97, 1.03, 0.94), 1.0, 1.04, 6, 240, 1.0, 7),
    # A plaza with a glass front: too bright, a little magenta.
    Camera((196, 198, 200), (56, 130), (186, 180, 172), 150, 0.32, 0.9,
           (1.03, 0.99, 1.03), 0.97, 0.88, 12, 255, 0.95, 6),
    # A tiled underpass: dark, yellow, noisy.
    Camera((186, 186, 170), (70, 40), (120, 116, 108), 220, 0.25, -0.2,
           (1.03, 0.98, 0.86), 0.95, 1.06, 8, 230, 0.9, 9),
)
# fmt: on


def photograph(
    person: Person, seed: int, camera_id: int, rng: Random, *, is_junk: bool = False
) -> Image.Image:
    """Make one image of the person, or with `is_junk` a bad crop with a part of them or nobody."""
    camera = CAMERAS[camera_id - 1]
    image, size = _background(seed, camera_id, rng)
    width, height = image.size

    def draw(who: Person, x: float, ground: float, tall: float) -> None:
        pitch = camera.pitch + rng.gauss(0, 0.03)
        stand = Stand(x * width, ground * height, tall * height, pitch, camera.light)
        draw_person(image, who, random_pose(rng), stand)

    if not is_junk:
        if rng.random() < 0.15:  # somebody else behind, partly in view
            x = rng.choice((rng.uniform(-0.02, 0.16), rng.uniform(0.84, 1.02)))
            draw(random_person(rng), x, rng.uniform(0.72, 0.88), rng.uniform(0.5, 0.8))
        draw(person, *_detect(rng))
    elif rng.random() < 0.65:
        x, ground = rng.choice((-0.05, 0.05, 0.95, 1.05)), rng.choice((0.55, 0.95, 1.6, 1.9))
        draw(person, x, ground, rng.uniform(0.9, 1.6))
    if rng.random() < (0.5 if is_junk else 0.12):
        _draw_obstacle(image, rng)
    return _develop(image, size, camera, rng)


def _detect(rng: Random) -> tuple[float, float, float]:
    """Where a detector's box has the person: x, ground and height, as shares of the box."""
    share = rng.gauss(0.88, 0.035)
    shift_x, shift_y = rng.gauss(0, 0.035), rng.gauss(0, 0.012)
    mistake = rng.random()
    if mistake < 0.05:
        shift_y += rng.uniform(0.06, 0.16)  # cut at the feet
    elif mistake < 0.09:
        shift_x += rng.choice((-1, 1)) * rng.uniform(0.12, 0.2)  # cut at a side
    elif mistake < 0.14:
        share *= rng.uniform(0.8, 0.88)  # too large
    return 0.5 + shift_x, 0.5 + share / 2 + shift_y, share


@lru_cache(maxsize=16)
def place(seed: int, camera_id: int) -> Image.Image:
    """Draw the whole place that this camera sees: RGB, `PLACE_WIDTH` x `PLACE_HEIGHT`."""
    rng = Random(f"{seed}/place/{camera_id}")
    camera = CAMERAS[camera_id - 1]
    image = Image.new("RGB", (PLACE_WIDTH, PLACE_HEIGHT), camera.wall)
    draw = ImageDraw.Draw(image, "RGBA")
    if camera.window_px == (0, 0):
        _draw_trees(draw, camera.horizon, rng)
    else:
        _draw_wall(draw, camera, rng)
    draw.rectangle((0, camera.horizon, PLACE_WIDTH, PLACE_HEIGHT), fill=camera.ground)
    line = shade(camera.ground, 0.86)
    y, step = float(camera.horizon), 9.0
    while y < PLACE_HEIGHT:  # slabs, larger towards the camera
        draw.line((0, y, PLACE_WIDTH, y), fill=line, width=2)
        y, step = y + step, step * 1.35
    for x in range(-300, PLACE_WIDTH + 300, 60):
        lower = x + 0.12 * (x - PLACE_WIDTH / 2)
        draw.line((x, camera.horizon, lower, PLACE_HEIGHT), fill=line, width=2)
    image = image.filter(ImageFilter.GaussianBlur(1.0))
    return _add_noise(image, 14, 6, rng)


def _draw_wall(draw: ImageDraw.ImageDraw, camera: Camera, rng: Random) -> None:
    """Stones in rows, windows, and something colourful between them: a door or a poster."""
    for row, y in enumerate(range(0, camera.horizon, 14)):
        for x in range(-20 + 15 * (row % 2), PLACE_WIDTH, 30):
            draw.rectangle((x, y, x + 27, y + 11), fill=shade(camera.wall, rng.uniform(0.85, 1.1)))
    width, height = camera.window_px
    top = (camera.horizon - height) // 3
    for x in range(rng.randint(0, width), PLACE_WIDTH, round(1.5 * width) + 20):
        glass = shade((84, 98, 110), rng.uniform(0.8, 1.3))
        draw.rectangle((x, top, x + width, top + height), fill=(222, 218, 208))
        draw.rectangle((x + 6, top + 6, x + width - 6, top + height - 6), fill=glass)
        corners = [(x + 8, top + 6), (x + width // 2, top + 6), (x + 8, top + height - 10)]
        draw.polygon(corners, fill=(255, 255, 255, 50))  # the sky in the glass
        if rng.random() < 0.3:
            left, high = x + width + 8, rng.uniform(0.3, 0.9) * camera.horizon
            colour = shade(rng.choice(UPPER_COLOURS), 0.8)
            draw.rectangle((left, camera.horizon - high, left + 60, camera.horizon), fill=colour)


def _draw_trees(draw: ImageDraw.ImageDraw, horizon: int, rng: Random) -> None:
    """Leaves above, trunks and grass below."""
    for _ in range(2500):
        x, y = rng.randint(0, PLACE_WIDTH), rng.randint(140, horizon)
        draw.line((x, y, x + rng.randint(-3, 3), y - rng.randint(4, 9)), fill=(70, 116, 48, 150))
    for _ in range(300):
        x, y, radius = rng.randint(-40, PLACE_WIDTH), rng.randint(-20, 140), rng.randint(18, 46)
        leaves = shade((72, 112, 54), rng.uniform(0.6, 1.3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=leaves)
    for x in range(rng.randint(20, 90), PLACE_WIDTH, 190):
        draw.ellipse((x - 30, 196, x + 60, 212), fill=(0, 0, 0, 50))
        draw.rectangle((x, 40, x + 20, 205), fill=(92, 72, 54))


def _draw_obstacle(image: Image.Image, rng: Random) -> None:
    """Paint something in front of the person: a pole, a bush or a railing."""
    draw = ImageDraw.Draw(image, "RGBA")
    width, height = image.size
    metal = rng.choice(((60, 64, 68), (150, 148, 140), (120, 40, 40)))
    kind = rng.choice(("pole", "bush", "railing"))
    if kind == "pole":
        x = rng.choice((rng.uniform(0.05, 0.3), rng.uniform(0.68, 0.92))) * width
        draw.rectangle((x, 0, x + 16, height), fill=metal)
        draw.rectangle((x + 11, 0, x + 16, height), fill=shade(metal, 0.7))
    elif kind == "bush":
        centre = rng.choice((0.05, 0.2, 0.8, 0.95)) * width
        for _ in range(46):
            x, y = rng.gauss(centre, 0.17 * width), height * rng.uniform(0.78, 1.03)
            radius = rng.randint(8, 20)
            leaves = shade((62, 100, 50), rng.uniform(0.6, 1.35))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=leaves)
    else:
        top = height * rng.uniform(0.66, 0.8)
        for y in (top, top + 46):
            draw.rectangle((0, y, width, y + 6), fill=metal)
        for x in range(rng.randint(-30, 0), width, 56):
            draw.rectangle((x, top, x + 5, height), fill=shade(metal, 0.85))


def _background(seed: int, camera_id: int, rng: Random) -> tuple[Image.Image, tuple[int, int]]:
    """A window of the camera's place in drawing pixels, and the size of the finished image."""
    size = (rng.randint(*WIDTHS_PX), rng.randint(*HEIGHTS_PX))
    drawn = (size[0] * DRAWING_SCALE, size[1] * DRAWING_SCALE)
    zoom = rng.uniform(0.85, 1.15)
    wide, high = drawn[0] / zoom, min(PLACE_HEIGHT, drawn[1] / zoom)
    left, top = rng.uniform(0, PLACE_WIDTH - wide), rng.uniform(0, PLACE_HEIGHT - high)
    window = (left, top, left + wide, top + high)
    return place(seed, camera_id).resize(drawn, Image.Resampling.BILINEAR, box=window), size


def _develop(image: Image.Image, size: tuple[int, int], camera: Camera, rng: Random) -> Image.Image:
    """Turn the drawing into the camera's image of it: `size` is width and height in pixels."""
    sharpness = camera.sharpness * rng.uniform(0.85, 1.0)
    sensor = (round(size[0] * sharpness), round(size[1] * sharpness))
    image = image.resize(sensor, Image.Resampling.LANCZOS)
    image = image.filter(ImageFilter.GaussianBlur(0.4 * sharpness * rng.uniform(0.5, 1.5)))
    image = _change_tones(image, camera, rng)
    image = _add_noise(image, camera.noise * rng.uniform(0.6, 1.2), 1, rng)
    return image.resize(size, Image.Resampling.BICUBIC)


def _change_tones(image: Image.Image, camera: Camera, rng: Random) -> Image.Image:
    """Saturation, colour cast, exposure and contrast; all vary a little from image to image."""
    image = ImageEnhance.Color(image).enhance(camera.saturation * rng.uniform(0.9, 1.1))
    gamma = camera.gamma * rng.uniform(0.88, 1.12)
    black, white = camera.black, camera.white * rng.uniform(0.93, 1.04)
    curves: list[int] = []  # of red, green and blue
    for gain in camera.gains:
        varied = gain * rng.gauss(1, 0.025) / 255
        tones = [black + (white - black) * (value * varied) ** gamma for value in range(256)]
        curves += [max(0, min(255, round(tone))) for tone in tones]
    return image.point(curves)


def _add_noise(image: Image.Image, strength: float, grain: int, rng: Random) -> Image.Image:
    """Add noise of up to `strength` (of 255); its grains are `grain` pixels large."""
    size = (image.width // grain, image.height // grain)
    first, second = (
        Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])) for _ in range(2)
    )
    noise = Image.blend(first, second, 0.5).point(
        [round(128 + (value - 127.5) / 127.5 * strength) for value in range(256)] * 3
    )
    return ImageChops.add(image, noise.resize(image.size, Image.Resampling.BILINEAR), 1, -128)
