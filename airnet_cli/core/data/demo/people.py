"""What the people of the demo look like: build, hair, skin, clothes, bag and hat.

Clothes come in few colours. Many people therefore share one, and differ in something else.
"""

from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from random import Random
from typing import Literal

Colour = tuple[int, int, int]
"""Red, green, blue, each 0 to 255."""

Pattern = Literal["plain", "hoops", "pinstripes", "checks", "two_tone", "logo"]
Lower = Literal["trousers", "shorts", "skirt", "dress"]
Hair = Literal["bald", "short", "long"]
Bag = Literal["none", "backpack", "handbag", "suitcase"]


def _palette(codes: str) -> tuple[Colour, ...]:
    return tuple((red, green, blue) for red, green, blue in map(bytes.fromhex, codes.split()))


# Black, white, grey, red, navy, sky, green, yellow, pink, purple, orange.
UPPER_COLOURS = _palette(
    "202024 e8e7e2 808286 ba2228 222e62 68a4d6 2a7642 e4bc32 e282a0 6c3a86 de7026"
)
# Black, jeans, light jeans, grey, beige, white, olive, wine.
LOWER_COLOURS = _palette("222226 385486 8aa4c4 7a7a7e c4ac84 e2e0da 5c6036 7c202e")
# Black, brown, red, blue, green, yellow.
BAG_COLOURS = _palette("1e1e20 764a2a b0242c 2c54a0 3a7c4e dcb23a")
SHOE_COLOURS = _palette("1c1c1e e4e2de 70462a b2282c")
SKIN_COLOURS = _palette("f0ceb4 d2a27c 966648 604030")
# Black, brown, blond, red, grey.
HAIR_COLOURS = _palette("1c1818 603e26 d6b46e 963e1e a8a6a4")


@dataclass(frozen=True, slots=True)
class Person:
    """One identity."""

    height: float  # 1 is average
    width: float  # 1 is average
    hip_height: float  # a share of the body's height
    skin: Colour
    hair: Hair
    hair_colour: Colour
    hat: Colour | None
    upper: Colour
    pattern: Pattern
    pattern_colour: Colour
    has_short_sleeves: bool
    jacket: Colour | None  # open, over the upper garment
    lower_kind: Lower
    lower: Colour
    shoes: Colour
    bag: Bag
    bag_colour: Colour
    traits: tuple[object, ...]
    """The eight things that show from far away; compared to keep people different."""


@lru_cache(maxsize=4)
def population(seed: int, count: int) -> tuple[Person, ...]:
    """Make the first `count` people of this seed: each the least similar to those before of 40."""
    people: list[Person] = []
    for index in range(count):
        rng = Random(f"{seed}/person/{index}")
        candidates = [random_person(rng) for _ in range(40)]
        people.append(min(candidates, key=lambda person: _most_common_traits(person, people)))
    return tuple(people)


def random_person(rng: Random) -> Person:
    """Make one person; not compared with others."""
    upper, second, jacket = rng.sample(UPPER_COLOURS, 3)
    pattern: Pattern = rng.choices(
        ("plain", "hoops", "pinstripes", "checks", "two_tone", "logo"), (7, 3, 2, 2, 3, 2)
    )[0]
    kind: Lower = rng.choices(("trousers", "shorts", "skirt", "dress"), (10, 4, 3, 3))[0]
    lower = upper if kind == "dress" else rng.choice(LOWER_COLOURS)
    hair: Hair = rng.choices(("bald", "short", "long"), (1, 5, 5))[0]
    bag: Bag = rng.choices(("none", "backpack", "handbag", "suitcase"), (3, 4, 4, 1))[0]
    has_jacket = kind != "shorts" and rng.random() < 0.3
    has_hat = rng.random() < 0.33
    dyed_upper = _dyed(upper, rng)
    return Person(
        height=rng.uniform(0.92, 1.06),
        width=rng.uniform(0.86, 1.28),
        hip_height=rng.uniform(0.455, 0.515),
        skin=_dyed(rng.choice(SKIN_COLOURS), rng),
        hair=hair,
        hair_colour=_dyed(rng.choice(HAIR_COLOURS), rng),
        hat=_dyed(rng.choice(UPPER_COLOURS), rng) if has_hat else None,
        upper=dyed_upper,
        pattern=pattern,
        pattern_colour=_dyed(second, rng),
        has_short_sleeves=not has_jacket and rng.random() < (0.8 if kind == "shorts" else 0.35),
        jacket=_dyed(jacket, rng) if has_jacket else None,
        lower_kind=kind,
        lower=dyed_upper if kind == "dress" else _dyed(lower, rng),
        shoes=_dyed(rng.choice(SHOE_COLOURS), rng),
        bag=bag,
        bag_colour=_dyed(rng.choice(BAG_COLOURS), rng),
        traits=(upper, pattern, lower, kind, bag, hair, has_hat, has_jacket),
    )


def count_common_traits(a: Person, b: Person) -> int:
    """Count the traits that two people share, of eight."""
    return sum(map(eq, a.traits, b.traits))


def _most_common_traits(person: Person, others: list[Person]) -> int:
    return max((count_common_traits(person, other) for other in others), default=0)


def _dyed(colour: Colour, rng: Random) -> Colour:
    """Change a colour a little, as two garments of one colour differ."""
    red, green, blue = (max(0, min(255, part + rng.randint(-12, 12))) for part in colour)
    return red, green, blue
