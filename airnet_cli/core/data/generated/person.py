"""What one generated person looks like, whoever looks at them from wherever: build, hair, skin,
clothes, bag, hat.

Clothes come in few colours, so that many people share one and differ in the rest. `population`
makes the people of a data set from its seed; no two of them are alike in all that can be seen from
far away.
"""

from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from random import Random
from typing import Literal

Colour = tuple[int, int, int]

Pattern = Literal["plain", "hoops", "pinstripes", "checks", "two_tone", "logo"]
Lower = Literal["trousers", "shorts", "skirt", "dress"]
HairStyle = Literal["bald", "short", "bob", "long", "ponytail"]
Hat = Literal["none", "cap", "beanie"]
Bag = Literal["none", "backpack", "handbag", "shoulder_bag", "suitcase"]

CLOTHES: dict[str, Colour] = {
    "black": (32, 32, 36),
    "white": (232, 231, 226),
    "grey": (128, 130, 134),
    "red": (186, 34, 40),
    "navy": (34, 46, 98),
    "sky": (104, 164, 214),
    "green": (42, 118, 66),
    "yellow": (228, 188, 50),
    "pink": (226, 130, 160),
    "purple": (108, 58, 134),
    "orange": (222, 112, 38),
}
LOWER_CLOTHES: dict[str, Colour] = {
    "black": (34, 34, 38),
    "jeans": (56, 84, 134),
    "light_jeans": (138, 164, 196),
    "grey": (122, 122, 126),
    "beige": (196, 172, 132),
    "white": (226, 224, 218),
    "olive": (92, 96, 54),
    "wine": (124, 32, 46),
}
BAGS: dict[str, Colour] = {
    "black": (30, 30, 32),
    "brown": (118, 74, 42),
    "red": (176, 36, 44),
    "blue": (44, 84, 160),
    "green": (58, 124, 78),
    "yellow": (220, 178, 58),
}
SHOES: tuple[Colour, ...] = ((28, 28, 30), (228, 226, 222), (112, 70, 42), (178, 40, 44))
SKINS: tuple[Colour, ...] = (
    (244, 212, 188),
    (230, 188, 154),
    (202, 152, 114),
    (150, 102, 72),
    (96, 64, 48),
)
HAIRS: tuple[Colour, ...] = (
    (28, 24, 24),
    (76, 50, 32),
    (136, 92, 50),
    (214, 180, 110),
    (150, 62, 30),
    (168, 166, 164),
)


@dataclass(frozen=True, slots=True)
class Person:
    """One identity. Lengths are shares of the body's height."""

    height: float
    width: float
    hip_height: float
    skin: Colour
    hair: Colour
    hair_style: HairStyle
    hat: Hat
    hat_colour: Colour
    upper_name: str
    upper: Colour
    pattern: Pattern
    second: Colour
    short_sleeves: bool
    jacket: Colour | None
    """An open jacket over the upper garment."""
    coat: bool
    """The jacket reaches down to the knees."""
    lower_name: str
    lower_kind: Lower
    lower: Colour
    shoes: Colour
    bag: Bag
    bag_colour: Colour

    def traits(self) -> tuple[object, ...]:
        """The eight things that show from far away."""
        return (
            self.upper_name,
            self.pattern,
            self.lower_name,
            self.lower_kind,
            self.bag,
            self.hair_style,
            self.hat,
            self.jacket is None,
        )

    def likeness(self, other: "Person") -> int:
        """Count how many of the eight traits the two have in common."""
        return sum(map(eq, self.traits(), other.traits()))


@lru_cache(maxsize=4)
def population(seed: int, count: int) -> tuple[Person, ...]:
    """Make the first `count` people of the data set with this seed."""
    people: list[Person] = []
    traits: list[tuple[object, ...]] = []
    for index in range(count):
        person = _person_unlike(traits, Random(f"{seed}/person/{index}"))
        people.append(person)
        traits.append(person.traits())
    return tuple(people)


def random_person(rng: Random) -> Person:
    """Make somebody, for instance a passer-by."""
    upper_name = rng.choice(list(CLOTHES))
    second_name = rng.choice([name for name in CLOTHES if name != upper_name])
    pattern: Pattern = rng.choices(
        ("plain", "hoops", "pinstripes", "checks", "two_tone", "logo"), (7, 3, 2, 2, 3, 2)
    )[0]
    lower_kind: Lower = rng.choices(("trousers", "shorts", "skirt", "dress"), (10, 4, 3, 3))[0]
    lower_name = upper_name if lower_kind == "dress" else rng.choice(list(LOWER_CLOTHES))
    has_jacket = lower_kind != "shorts" and rng.random() < 0.3
    jacket_name = rng.choice([name for name in CLOTHES if name != upper_name])
    hair_style: HairStyle = rng.choices(
        ("bald", "short", "bob", "long", "ponytail"), (1, 5, 2, 3, 2)
    )[0]
    hat: Hat = rng.choices(("none", "cap", "beanie"), (6, 2, 1))[0]
    bag: Bag = rng.choices(
        ("none", "backpack", "handbag", "shoulder_bag", "suitcase"), (3, 4, 2, 2, 1)
    )[0]
    upper = _dyed(CLOTHES[upper_name], rng)
    return Person(
        height=rng.uniform(0.92, 1.06),
        width=rng.uniform(0.86, 1.28),
        hip_height=rng.uniform(0.455, 0.515),
        skin=_dyed(rng.choice(SKINS), rng),
        hair=_dyed(rng.choice(HAIRS), rng),
        hair_style=hair_style,
        hat=hat,
        hat_colour=_dyed(rng.choice(list(CLOTHES.values())), rng),
        upper_name=upper_name,
        upper=upper,
        pattern=pattern,
        second=_dyed(CLOTHES[second_name], rng),
        short_sleeves=not has_jacket and rng.random() < (0.8 if lower_kind == "shorts" else 0.35),
        jacket=_dyed(CLOTHES[jacket_name], rng) if has_jacket else None,
        coat=has_jacket and rng.random() < 0.35,
        lower_name=lower_name,
        lower_kind=lower_kind,
        lower=upper if lower_kind == "dress" else _dyed(LOWER_CLOTHES[lower_name], rng),
        shoes=_dyed(rng.choice(SHOES), rng),
        bag=bag,
        bag_colour=_dyed(rng.choice(list(BAGS.values())), rng),
    )


def _person_unlike(others: list[tuple[object, ...]], rng: Random) -> Person:
    """Draw until somebody differs from all `others`; after many tries, take the least alike."""
    best, best_likeness = random_person(rng), 9
    for _ in range(60):
        person = random_person(rng)
        traits = person.traits()
        likeness = max((sum(map(eq, traits, other)) for other in others), default=0)
        if likeness < best_likeness:
            best, best_likeness = person, likeness
        if likeness <= 4:
            break
    return best


def _dyed(colour: Colour, rng: Random) -> Colour:
    """Change a colour a little, as two garments of one colour differ."""
    red, green, blue = (max(0, min(255, part + rng.randint(-12, 12))) for part in colour)
    return red, green, blue
