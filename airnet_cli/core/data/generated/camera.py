"""The six generated cameras: how each looks at its place, and what its picture does to colours and
edges.

`photograph` takes one image of one person, `photograph_junk` a bad crop. An image depends on the
seed of the data set and on the image's own random numbers only. Pillow does all the arithmetic, in
whole numbers where it can, so that the same version of Pillow gives the same bytes.
"""

from dataclasses import dataclass
from io import BytesIO
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from airnet_cli.core.data.generated.figure import Stand, draw_person, random_pose
from airnet_cli.core.data.generated.person import Person, random_person
from airnet_cli.core.data.generated.scene import PLACE_HEIGHT, PLACE_WIDTH, draw_obstacle, place

WIDTH_PX, HEIGHT_PX = 64, 128
"""The middle of the images' sizes; a detector's boxes vary around it."""
LARGEST_WIDTH_PX, LARGEST_HEIGHT_PX = 72, 140

DRAWING_SCALE = 3
"""Drawing pixels per image pixel."""


@dataclass(frozen=True, slots=True)
class Camera:
    """What sets one camera apart."""

    pitch: float
    """How far it looks down, in radians."""
    squeeze: float
    roll: float
    """Its tilt: how far the top of the picture is shifted, as a share of the height."""
    light: float
    gains: tuple[float, float, float]
    """Red, green and blue, multiplied."""
    saturation: float
    gamma: float
    """Above 1 darkens the middle tones."""
    black: float
    white: float
    """The output range; haze lifts `black`, dim light lowers `white`. In 0-255."""
    sharpness: float
    """The sensor's resolution as a share of the crop's."""
    blur_px: float
    noise: float
    """Largest deviation of a colour value, in 0-255."""
    jpeg_quality: int
    obstacles: float
    """Share of the images with something in front of the person."""


CAMERAS: tuple[Camera, ...] = (
    # Shop street in the sun: warm, contrasty.
    Camera(0.12, 0.06, 0.02, -0.8, (1.06, 1.0, 0.92), 1.12, 0.95, 4, 250, 1.0, 0.4, 8, 80, 0.10),
    # Brick wall in the shade: blue, dull.
    Camera(0.20, 0.10, -0.03, 0.3, (0.90, 0.97, 1.08), 0.92, 1.02, 10, 222, 0.9, 0.4, 10, 75, 0.10),
    # Road from high up, hazy.
    Camera(0.42, 0.22, 0.04, 0.7, (1.0, 1.0, 0.98), 0.82, 0.90, 30, 240, 0.85, 0.4, 9, 70, 0.15),
    # Park under trees: green.
    Camera(0.08, 0.03, 0.0, -0.4, (0.94, 1.05, 0.90), 1.0, 1.06, 6, 236, 1.0, 0.3, 8, 80, 0.15),
    # Plaza, over-exposed, a little magenta.
    Camera(0.32, 0.16, -0.05, 0.9, (1.06, 0.98, 1.05), 0.97, 0.82, 12, 255, 0.95, 0.4, 7, 80, 0.08),
    # Underpass: dark, yellow, noisy.
    Camera(0.25, 0.14, 0.03, -0.2, (1.04, 0.95, 0.76), 0.90, 1.12, 8, 215, 0.9, 0.5, 16, 65, 0.08),
)


def photograph(person: Person, *, seed: int, camera_id: int, rng: Random) -> Image.Image:
    """Take one image of the person: place, pose, others in view, obstacles, a detector's box."""
    camera = CAMERAS[camera_id - 1]
    image, size = _empty_street(seed, camera_id, rng)
    width, height = image.size
    # A detector's box: mostly well around the person, sometimes too wide or off to one side.
    share = rng.gauss(0.88, 0.035)
    shift_x, shift_y = rng.gauss(0, 0.035), rng.gauss(0, 0.012)
    mistake = rng.random()
    if mistake < 0.05:
        shift_y += rng.uniform(0.06, 0.16)  # cut at the feet
    elif mistake < 0.09:
        shift_x += rng.choice((-1, 1)) * rng.uniform(0.12, 0.2)  # cut at a side
    elif mistake < 0.14:
        share *= rng.uniform(0.8, 0.88)
    if rng.random() < 0.22:
        _passer_by(image, camera, rng)
    stand = Stand(
        x=width * (0.5 + shift_x),
        ground=height * (0.5 + share / 2 + shift_y),
        height=height * share,
        pitch=camera.pitch + rng.gauss(0, 0.03),
        squeeze=camera.squeeze,
        light=camera.light,
    )
    draw_person(image, person, random_pose(rng), stand)
    if rng.random() < camera.obstacles:
        draw_obstacle(image, rng)
    return _developed(image, size, camera, rng)


def photograph_junk(person: Person, *, seed: int, camera_id: int, rng: Random) -> Image.Image:
    """Take a bad crop: an empty street, or a person of whom the box holds a part."""
    camera = CAMERAS[camera_id - 1]
    image, size = _empty_street(seed, camera_id, rng)
    width, height = image.size
    if rng.random() < 0.65:
        stand = Stand(
            x=width * rng.choice((-0.05, 0.05, 0.95, 1.05)),
            ground=height * rng.choice((0.55, 0.95, 1.6, 1.9)),
            height=height * rng.uniform(0.9, 1.6),
            pitch=camera.pitch,
            squeeze=camera.squeeze,
            light=camera.light,
        )
        draw_person(image, person, random_pose(rng), stand)
    if rng.random() < 0.5:
        draw_obstacle(image, rng)
    return _developed(image, size, camera, rng)


def _empty_street(seed: int, camera_id: int, rng: Random) -> tuple[Image.Image, tuple[int, int]]:
    """A window of the camera's place in drawing pixels, and the size of the finished image."""
    size = (
        min(LARGEST_WIDTH_PX, max(56, round(rng.gauss(WIDTH_PX, 2.5)))),
        min(LARGEST_HEIGHT_PX, max(116, round(rng.gauss(HEIGHT_PX, 4)))),
    )
    drawn = (size[0] * DRAWING_SCALE, size[1] * DRAWING_SCALE)
    zoom = rng.uniform(0.85, 1.15)
    wide, high = drawn[0] / zoom, min(PLACE_HEIGHT, drawn[1] / zoom)
    left = rng.uniform(0, PLACE_WIDTH - wide)
    top = rng.uniform(0, PLACE_HEIGHT - high)
    window = (left, top, left + wide, top + high)
    street = place(seed, camera_id).resize(drawn, Image.Resampling.BILINEAR, box=window)
    if rng.random() < 0.5:
        street = street.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return street, size


def _passer_by(image: Image.Image, camera: Camera, rng: Random) -> None:
    """Somebody else, partly in view behind the person."""
    width, height = image.size
    share = rng.uniform(0.5, 0.8)
    stand = Stand(
        x=width * rng.choice((rng.uniform(-0.02, 0.16), rng.uniform(0.84, 1.02))),
        ground=height * rng.uniform(0.72, 0.88),
        height=height * share,
        pitch=camera.pitch,
        squeeze=camera.squeeze,
        light=camera.light,
    )
    draw_person(image, random_person(rng), random_pose(rng), stand)


def _developed(
    image: Image.Image, size: tuple[int, int], camera: Camera, rng: Random
) -> Image.Image:
    """From the drawing to the camera's picture of it."""
    width, height = image.size
    tilt = (camera.roll + rng.gauss(0, 0.012)) * height
    image = image.transform(
        image.size,
        Image.Transform.AFFINE,
        # Squeezed so that the tilted window stays inside the drawing.
        (1 - abs(tilt) / width, -tilt / height, max(tilt, 0.0), 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    if rng.random() < 0.3:
        _cast_shadow(image, rng)
    sharpness = camera.sharpness * rng.uniform(0.85, 1.0)
    sensor = (round(size[0] * sharpness), round(size[1] * sharpness))
    image = image.resize(sensor, Image.Resampling.LANCZOS)
    image = image.filter(
        ImageFilter.GaussianBlur(camera.blur_px * sharpness * rng.uniform(0.5, 1.5))
    )
    image = _toned(image, camera, rng)
    image = _noisy(image, camera.noise * rng.uniform(0.6, 1.2), rng)
    image = image.resize(size, Image.Resampling.BICUBIC)
    packed = BytesIO()
    image.save(packed, "JPEG", quality=camera.jpeg_quality)
    return Image.open(packed).convert("RGB")


def _cast_shadow(image: Image.Image, rng: Random) -> None:
    """The shadow of a house or a tree over a part of the picture."""
    width, height = image.size
    x, slope = rng.uniform(0, width), rng.uniform(-0.4, 0.4) * width
    edge = width if rng.random() < 0.5 else 0
    ImageDraw.Draw(image, "RGBA").polygon(
        [(x, 0), (edge, 0), (edge, height), (x + slope, height)], fill=(10, 14, 30, 60)
    )


def _toned(image: Image.Image, camera: Camera, rng: Random) -> Image.Image:
    """Saturation, colour cast, exposure and contrast; all vary a little with the time of day."""
    saturation = camera.saturation * rng.uniform(0.9, 1.1)
    gains = [gain * rng.gauss(1, 0.025) for gain in camera.gains]
    matrix: list[float] = []
    for row, gain in enumerate(gains):
        for column, weight in enumerate((0.299, 0.587, 0.114)):
            matrix.append(gain * ((1 - saturation) * weight + saturation * (row == column)))
        matrix.append(0.0)
    image = image.convert("RGB", tuple(matrix))
    gamma = camera.gamma * rng.uniform(0.88, 1.12)
    black, white = camera.black, camera.white * rng.uniform(0.93, 1.04)
    curve = [
        max(0, min(255, round(black + (white - black) * (value / 255) ** gamma)))
        for value in range(256)
    ]
    return image.point(curve * 3)


def _noisy(image: Image.Image, strength: float, rng: Random) -> Image.Image:
    """Add noise of a triangular distribution: the mean of two uniform ones."""
    count = image.width * image.height * 3
    first, second = (Image.frombytes("RGB", image.size, rng.randbytes(count)) for _ in range(2))
    noise = Image.blend(first, second, 0.5).point(
        [round(128 + (value - 127.5) / 127.5 * strength) for value in range(256)] * 3
    )
    return ImageChops.add(image, noise, 1, -128)
