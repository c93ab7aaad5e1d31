"""What can be on stage: the factors of a scene, which combinations exist, and which are held out."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tinywan.errors import ConfigError

Split = Literal["train", "held_out", "all"]

SUBJECTS = ("woman", "man", "child", "dog")
GARMENTS: dict[str, tuple[str, ...]] = {
    "woman": ("qipao", "coat"),
    "man": ("coat", "shirt"),
    "child": ("raincoat", "sweater"),
    "dog": ("vest",),
}
COLORS = ("red", "yellow", "green", "blue", "purple", "pink")
PROPS = ("umbrella", "lantern", "none")
PLACES = ("alley", "park", "beach", "street")
WEATHERS = ("rain", "snow", "clear")
ACTIONS = ("walk", "run", "stand")
DIRECTIONS = ("left", "right")

_PROP_ODDS = {"dog": (0.0, 0.5, 0.5)}  # a dog has no hand for an umbrella
_PERSON_PROP_ODDS = (0.45, 0.35, 0.2)


@dataclass(frozen=True)
class Scene:
    """One combination of factors, and the seed of everything else.

    Args:
        subject: who acts, one of `SUBJECTS`.
        garment: what they wear, one of `GARMENTS[subject]`.
        garment_color: one of `COLORS`.
        prop: what they carry, one of `PROPS`; a dog carries no umbrella.
        prop_color: one of `COLORS`, or "none" exactly when `prop` is "none".
        place: one of `PLACES`; "alley" is a Jiangnan stone alley, "street" is at night.
        weather: one of `WEATHERS`.
        action: one of `ACTIONS`.
        direction: where they face and move, one of `DIRECTIONS`.
        seed: at least 0; layout, positions and particles follow from it.

    Raises:
        ConfigError: a factor that is not in the theatre, or two that do not go together.
    """

    subject: str
    garment: str
    garment_color: str
    prop: str
    prop_color: str
    place: str
    weather: str
    action: str
    direction: str
    seed: int

    def __post_init__(self) -> None:
        _check("subject", self.subject, SUBJECTS)
        _check(f"garment of a {self.subject}", self.garment, GARMENTS[self.subject])
        _check("garment_color", self.garment_color, COLORS)
        _check("prop", self.prop, PROPS if self.subject != "dog" else PROPS[1:])
        _check("prop_color", self.prop_color, ("none",) if self.prop == "none" else COLORS)
        _check("place", self.place, PLACES)
        _check("weather", self.weather, WEATHERS)
        _check("action", self.action, ACTIONS)
        _check("direction", self.direction, DIRECTIONS)
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} cannot seed a scene: use 0 or more")

    @property
    def factors(self) -> tuple[str, ...]:
        """Everything but the seed, in the order of the fields."""
        return (
            self.subject,
            self.garment,
            self.garment_color,
            self.prop,
            self.prop_color,
            self.place,
            self.weather,
            self.action,
            self.direction,
        )


def _check(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ConfigError(
            f"{name}={found!r} is not in the theatre: use one of {', '.join(allowed)}"
        )


def is_held_out(scene: Scene) -> bool:
    """Say whether the factors of `scene` fall into the tenth that is never trained on.

    The seed plays no part, so a held-out combination is unseen in every layout.
    """
    digest = hashlib.sha256("|".join(scene.factors).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def sample_scene(rng: np.random.Generator, split: Split = "train") -> Scene:
    """Draw a scene with every factor uniform, given the subject.

    The prop never has the colour of the garment, so that colour alone tells the two apart.

    Args:
        rng: the only source of randomness.
        split: "train", "held_out", or "all" for both.

    Raises:
        ConfigError: `split` is none of the three.
    """
    if split not in get_args(Split):
        raise ConfigError(f"split={split!r} is unknown: use one of {', '.join(get_args(Split))}")
    while True:
        scene = _sample(rng)
        if split == "all" or is_held_out(scene) == (split == "held_out"):
            return scene


def _sample(rng: np.random.Generator) -> Scene:
    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    subject = pick(SUBJECTS)
    garment_color = pick(COLORS)
    edges = np.cumsum(_PROP_ODDS.get(subject, _PERSON_PROP_ODDS))
    prop = PROPS[min(int(np.searchsorted(edges, rng.random(), side="right")), len(PROPS) - 1)]
    others = tuple(color for color in COLORS if color != garment_color)
    return Scene(
        subject=subject,
        garment=pick(GARMENTS[subject]),
        garment_color=garment_color,
        prop=prop,
        prop_color="none" if prop == "none" else pick(others),
        place=pick(PLACES),
        weather=pick(WEATHERS),
        action=pick(ACTIONS),
        direction=pick(DIRECTIONS),
        seed=int(rng.integers(2**31)),
    )
