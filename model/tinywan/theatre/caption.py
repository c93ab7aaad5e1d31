"""Captions in English and Chinese, with the characters that name each part.

The words are in wordings.py, with marks: `[eaves:屋檐]` becomes 屋檐, and its characters are a span of "eaves".
Without a random generator the first wording of every list is taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tinywan.errors import ConfigError
from tinywan.theatre import wordings
from tinywan.theatre.scene import Scene

Language = Literal["en", "zh"]
Detail = Literal["random", "short", "long"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Caption:
    """A sentence about a scene.

    Args:
        text: the sentence.
        language: "en" or "zh".
        spans: part -> (start, stop) character spans of every mention; parts are names of masks.
    """

    text: str
    language: str
    spans: dict[str, tuple[Span, ...]]


class _Teller:
    """Chooses wordings: at random, or always the first."""

    def __init__(self, rng: np.random.Generator | None, detail: Detail) -> None:
        self._rng = rng
        self.detail = detail

    def one(self, wordings: Sequence[str]) -> str:
        """One wording; half of the time the usual one."""
        if self._rng is None or self._rng.random() < 0.4:
            return wordings[0]
        return wordings[int(self._rng.integers(len(wordings)))]

    def says(self, odds: float, short: bool, long: bool) -> bool:
        """Whether an optional fact is told: by its odds, or as the level of detail has it."""
        if self.detail == "random":
            assert self._rng is not None  # caption() sees to it
            return bool(self._rng.random() < odds)
        return short if self.detail == "short" else long


def caption(
    scene: Scene,
    language: Language,
    rng: np.random.Generator | None = None,
    detail: Detail = "random",
) -> Caption:
    """Tell a scene in one sentence.

    Args:
        scene: what to tell.
        language: "en" or "zh".
        rng: chooses among wordings. None takes the usual wording for "short" and "long", and one that
            follows from the scene's seed for "random".
        detail: "short" tells who wears what, what they do and carry, where and in which weather; "long"
            adds what is behind them; "random" leaves parts of it out and adds the prop's colour and the
            direction, as a person would. The garment's colour is always told.

    Raises:
        ConfigError: a language or level of detail that does not exist.
    """
    if language not in get_args(Language):
        raise ConfigError(f"language={language!r} is not spoken in the theatre: use 'en' or 'zh'")
    if detail not in get_args(Detail):
        raise ConfigError(f"detail={detail!r} is unknown: use 'random', 'short' or 'long'")
    if detail == "random" and rng is None:
        rng = np.random.default_rng([scene.seed, 4])
    tell = _Teller(rng, detail)
    marked = _tell_zh(scene, tell) if language == "zh" else _tell_en(scene, tell)
    text, spans = _unmark(marked)
    if detail == "random" and tell.says(0.15, short=False, long=False):
        text = text + "。" if language == "zh" else text[0].upper() + text[1:] + "."
    return Caption(text, language, spans)


def _tell_zh(scene: Scene, tell: _Teller) -> str:
    wears = tell.one(("穿{}", "穿着{}", "身穿{}"))
    color = tell.one(
        (
            wordings.ZH_COLOR[scene.garment_color],
            wordings.ZH_COLOR[scene.garment_color].removesuffix("色"),
        )
    )
    garment = f"{color}[garment:{wordings.ZH_GARMENT[scene.garment]}]"
    who = tell.one(wordings.ZH_SUBJECT[scene.subject]).format(wears.format(garment))
    place, says_weather = _place(scene, tell, wordings.ZH_PLACE, wordings.ZH_RAINY_ALLEY, "rain:")
    prop = _prop(scene, tell, wordings.ZH_PROP, wordings.ZH_COLORED_PROP, wordings.ZH_COLOR)
    if scene.subject == "dog":
        prop = prop.replace("提着", "叼着").replace("拿着", "叼着")
    if tell.says(0.6, short=False, long=False):
        side = tell.one(wordings.ZH_DIRECTION[scene.direction])
        action = tell.one(wordings.ZH_ACTION_TO[scene.action]).format(side)
        if side.endswith("边") and action.endswith(("走", "跑")):
            action = action.replace("边", "")
    else:
        action = tell.one(wordings.ZH_ACTION[scene.action])
    before, after = "", ""
    if says_weather:
        if tell.one(("after", "after", "before")) == "before":
            before = tell.one(wordings.ZH_WEATHER_BEFORE[scene.weather])
        else:
            after = tell.one(wordings.ZH_WEATHER[scene.weather])
    return (
        before
        + who
        + place
        + prop
        + action
        + after
        + _behind(scene, tell, wordings.ZH_BEHIND, wordings.ZH_DRIPPING)
    )


def _tell_en(scene: Scene, tell: _Teller) -> str:
    garment = f"{scene.garment_color} [garment:{tell.one(wordings.EN_GARMENT[scene.garment])}]"
    who = (
        tell.one(wordings.EN_SUBJECT[scene.subject])
        + " "
        + tell.one(wordings.EN_WEARS).format(garment)
    )
    place, says_weather = _place(scene, tell, wordings.EN_PLACE, wordings.EN_RAINY_ALLEY, "rain:")
    colors = {color: color for color in wordings.ZH_COLOR}
    prop = _prop(scene, tell, wordings.EN_PROP, wordings.EN_COLORED_PROP, colors)
    action = tell.one(wordings.EN_ACTION[scene.action])
    if tell.says(0.6, short=False, long=False):
        kind = "stand" if scene.action == "stand" else "move"
        action += tell.one(wordings.EN_DIRECTION[kind]).format(scene.direction)
    during, after = "", ""
    if says_weather:
        if tell.one(("during", "during", "after")) == "during":
            during = tell.one(wordings.EN_WEATHER[scene.weather])
        else:
            after = tell.one(wordings.EN_WEATHER_AFTER[scene.weather])
    where = f" {place}" if place else ""
    holds = f" {prop}" if prop else ""
    order = tell.one(("place", "prop"))
    middle = where + during + holds if order == "place" else holds + where + during
    return f"{who} {action}{middle}{after}{_behind(scene, tell, wordings.EN_BEHIND, wordings.EN_DRIPPING)}"


def _place(
    scene: Scene,
    tell: _Teller,
    places: Mapping[str, Sequence[str]],
    rainy_alley: Sequence[str],
    rain: str,
) -> tuple[str, bool]:
    """The words for where, and whether the weather is still to be told."""
    weather = tell.says(0.9, short=True, long=True)
    if not tell.says(0.93, short=True, long=True):
        return "", weather
    if weather and scene.place == "alley" and scene.weather == "rain":
        where = tell.one((*rainy_alley, *places["alley"]))
        return where, rain not in where
    return tell.one(places[scene.place]), weather


def _prop(
    scene: Scene,
    tell: _Teller,
    plain: Mapping[str, Sequence[str]],
    colored: Mapping[str, Sequence[str]],
    colors: Mapping[str, str],
) -> str:
    if scene.prop == "none":
        return ""
    if tell.says(0.8, short=False, long=False):
        return tell.one(colored[scene.prop]).format(colors[scene.prop_color])
    return tell.one(plain[scene.prop])


def _behind(
    scene: Scene, tell: _Teller, places: Mapping[str, Sequence[str]], dripping: Sequence[str]
) -> str:
    if not tell.says(0.35, short=False, long=True):
        return ""
    if scene.place == "alley" and scene.weather == "rain":
        return tell.one((*dripping, *places["alley"]))
    return tell.one(places[scene.place])


_MARK = re.compile(r"\[(\w+):([^\]]+)\]")


def _unmark(marked: str) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """Take the marks out of a sentence and note where they were."""
    spans: dict[str, tuple[Span, ...]] = {}
    text, last = "", 0
    for mark in _MARK.finditer(marked):
        text += marked[last : mark.start()]
        part, words = mark.groups()
        spans[part] = (*spans.get(part, ()), (len(text), len(text) + len(words)))
        text += words
        last = mark.end()
    return text + marked[last:], spans
