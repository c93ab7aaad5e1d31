"""What can be on stage: the factors of a scene, which combinations exist, and which are held out."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from tinywan.errors import ConfigError

Split = Literal["train", "held_out", "all"]
World = Literal["first", "whole"]

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

# What the whole world adds to the first. The first value of `CAMERAS` and `LOOKS`, and "none", are the
# first world's, and captions pass over them in silence.
CAMERAS = ("still", "pan left", "pan right", "zoom in")
LOOKS = ("plain", "film", "monochrome")
COMPANIONS = ("dog", "cat", "child", "none")
COMPANION_COLORS = ("white", "black", "brown")  # muted: only garment and prop are saturated
WINDS = ("windy", "none")
STAGING = ("action", "direction", "camera", "wind")  # what a scene staged again may change

_PROP_ODDS = {"dog": (0.0, 0.5, 0.5)}  # a dog has no hand for an umbrella
_PERSON_PROP_ODDS = (0.45, 0.35, 0.2)
_LOOK_ODDS = (0.5, 0.25, 0.25)  # monochrome hides the colours, which are to be learned too
_ALONE_ODDS = 0.4


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
        camera: how the picture moves over the world, one of `CAMERAS`.
        look: how the picture is developed, one of `LOOKS`.
        companion: who is beside the subject, one of `COMPANIONS`, and another kind than the subject.
        companion_color: one of `COMPANION_COLORS`, of fur or of a child's sweater; or "none" exactly
            when `companion` is "none".
        wind: one of `WINDS`; "windy" only where rain or snow shows it.

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
    camera: str = "still"
    look: str = "plain"
    companion: str = "none"
    companion_color: str = "none"
    wind: str = "none"

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
        _check("camera", self.camera, CAMERAS)
        _check("look", self.look, LOOKS)
        _check(f"companion of a {self.subject}", self.companion, companions_of(self.subject))
        furs = ("none",) if self.companion == "none" else COMPANION_COLORS
        _check("companion_color", self.companion_color, furs)
        _check("wind", self.wind, ("none",) if self.weather == "clear" else WINDS)

    @property
    def factors(self) -> tuple[str, ...]:
        """Everything of the first world but the seed, in the order of the fields."""
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


def companions_of(subject: str) -> tuple[str, ...]:
    """Who can be beside a subject: any companion of another kind, or "none"."""
    return tuple(kind for kind in COMPANIONS if kind != subject)


def _check(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ConfigError(
            f"{name}={found!r} is not in the theatre: use one of {', '.join(allowed)}"
        )


def is_held_out(scene: Scene) -> bool:
    """Say whether the factors of `scene` fall into the tenth that is never trained on.

    The seed plays no part, nor does what the whole world adds: a held-out combination is unseen in every
    layout, under every camera and look, with every companion and in every wind.
    """
    digest = hashlib.sha256("|".join(scene.factors).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 == 0


def sample_scene(rng: np.random.Generator, split: Split = "train", world: World = "first") -> Scene:
    """Draw a scene with every factor uniform, given the subject.

    The prop never has the colour of the garment, so that colour alone tells the two apart.

    Args:
        rng: the only source of randomness.
        split: "train", "held_out", or "all" for both.
        world: "first" has one subject under a still camera; "whole" also draws camera, look (half of
            them plain), companion (two of five have none) and, in half of the rain and snow, wind.

    Raises:
        ConfigError: an unknown split or world.
    """
    if split not in get_args(Split):
        raise ConfigError(f"split={split!r} is unknown: use one of {', '.join(get_args(Split))}")
    if world not in get_args(World):
        raise ConfigError(f"world={world!r} is unknown: use one of {', '.join(get_args(World))}")
    while True:
        scene = _sample(rng)
        if split == "all" or is_held_out(scene) == (split == "held_out"):
            return scene if world == "first" else _furnish(scene, rng)


def restage(
    scene: Scene, rng: np.random.Generator, world: World = "first", only: str | None = None
) -> Scene:
    """Stage a scene once more: the same people in the same place, and what moves is drawn anew.

    Args:
        scene: of the training split.
        rng: the only source of randomness.
        world: of the scene; in the whole one camera and wind are drawn, too.
        only: the one of `STAGING` that is drawn anew; None draws all of them.

    Returns:
        A scene of the training split that may differ in action, direction, camera and wind alone.

    Raises:
        ConfigError: for another `only`, or one that the world does not have.
    """
    changing: tuple[str, ...] = STAGING if world == "whole" else STAGING[:2]
    if only is not None:
        _check("only", only, changing)
        changing = (only,)
    while True:
        drawn: dict[str, Any] = {
            "action": _pick(rng, ACTIONS),
            "direction": _pick(rng, DIRECTIONS),
            "camera": _pick(rng, CAMERAS),
            "wind": "none" if scene.weather == "clear" else _pick(rng, WINDS),
        }
        other = replace(scene, **{name: drawn[name] for name in changing})
        if not is_held_out(other):
            return other


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _pick_by_odds(
    rng: np.random.Generator, choices: tuple[str, ...], odds: tuple[float, ...]
) -> str:
    place = int(np.searchsorted(np.cumsum(odds), rng.random(), side="right"))
    return choices[min(place, len(choices) - 1)]


def _sample(rng: np.random.Generator) -> Scene:
    subject = _pick(rng, SUBJECTS)
    garment_color = _pick(rng, COLORS)
    prop = _pick_by_odds(rng, PROPS, _PROP_ODDS.get(subject, _PERSON_PROP_ODDS))
    others = tuple(color for color in COLORS if color != garment_color)
    return Scene(
        subject=subject,
        garment=_pick(rng, GARMENTS[subject]),
        garment_color=garment_color,
        prop=prop,
        prop_color="none" if prop == "none" else _pick(rng, others),
        place=_pick(rng, PLACES),
        weather=_pick(rng, WEATHERS),
        action=_pick(rng, ACTIONS),
        direction=_pick(rng, DIRECTIONS),
        seed=int(rng.integers(2**31)),
    )


def _furnish(scene: Scene, rng: np.random.Generator) -> Scene:
    """Draw what the whole world adds."""
    alone = rng.random() < _ALONE_ODDS
    return replace(
        scene,
        camera=_pick(rng, CAMERAS),
        look=_pick_by_odds(rng, LOOKS, _LOOK_ODDS),
        companion="none" if alone else _pick(rng, companions_of(scene.subject)[:-1]),
        companion_color="none" if alone else _pick(rng, COMPANION_COLORS),
        wind="none" if scene.weather == "clear" else _pick(rng, WINDS),
    )
