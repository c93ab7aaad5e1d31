"""Captions in English and Chinese, with the characters that name each part.

The words are in wordings.py, with marks: `[eaves:屋檐]` becomes 屋檐, and its characters are a span of "eaves".
Without a random generator the first wording of every list is taken.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        colors: part -> spans of the words that tell its colour, of garment, prop and companion.
        deeds: spans of the words that tell what the subject does, and to which side.
        camera: spans of the words that tell what the camera does.
    """

    text: str
    language: str
    spans: dict[str, tuple[Span, ...]]
    colors: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    deeds: tuple[Span, ...] = ()
    camera: tuple[Span, ...] = ()


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
            direction, as a person would. Every level tells the garment's colour, the companion with its
            colour, camera and look. What is the first world's only choice is passed over in silence, and
            so are, in monochrome, the colours of garment and prop, which nobody could see.

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
    text, marks = _unmark(marked)
    if detail == "random" and tell.says(0.15, short=False, long=False):
        text = text + "。" if language == "zh" else text[0].upper() + text[1:] + "."
    deeds = tuple(span for kind in ("deed", "side") for span in marks.pop(kind, ()))
    camera = marks.pop("camera", ())
    spans = {part: found for part, found in marks.items() if not part.endswith(_COLOR)}
    colors = {part.removesuffix(_COLOR): marks[part] for part in marks.keys() - spans.keys()}
    return Caption(text, language, spans, colors, deeds, camera)


def _tell_zh(scene: Scene, tell: _Teller) -> str:
    wears = tell.one(("穿{}", "穿着{}", "身穿{}"))
    color = tell.one(
        (
            wordings.ZH_COLOR[scene.garment_color],
            wordings.ZH_COLOR[scene.garment_color].removesuffix("色"),
        )
    )
    color = f"[garment_color:{color}]" if scene.look != "monochrome" else ""
    garment = f"{color}[garment:{wordings.ZH_GARMENT[scene.garment]}]"
    who = tell.one(wordings.ZH_SUBJECT[scene.subject]).format(wears.format(garment))
    place, says_weather = _place(scene, tell, wordings.ZH_PLACE, wordings.ZH_RAINY_ALLEY, "rain:")
    prop = _prop(scene, tell, wordings.ZH_PROP, wordings.ZH_COLORED_PROP, wordings.ZH_COLOR)
    if scene.subject == "dog":
        prop = prop.replace("提着", "叼着").replace("拿着", "叼着")
    if tell.says(0.6, short=False, long=False):
        side = tell.one(wordings.ZH_DIRECTION[scene.direction])
        action = tell.one(wordings.ZH_ACTION_TO[scene.action])
        if action.endswith(("走]", "跑]")):
            side = side.removesuffix("边")
        action = action.format(f"[side:{side}]")
    else:
        action = tell.one(wordings.ZH_ACTION[scene.action])
    before, after = "", ""
    if says_weather:
        if tell.one(("after", "after", "before")) == "before":
            before = tell.one(
                _windy(scene, wordings.ZH_WEATHER_BEFORE, wordings.ZH_WINDY_WEATHER_BEFORE)
            )
        else:
            after = tell.one(_windy(scene, wordings.ZH_WEATHER, wordings.ZH_WINDY_WEATHER))
    does = place + prop + action
    if scene.companion != "none":
        kind = "stand" if scene.action == "stand" else "move"
        color = f"[companion_color:{wordings.ZH_COMPANION_COLOR[scene.companion_color]}]"
        other = tell.one(wordings.ZH_COMPANION[scene.companion]).format(color)
        told = tell.one(wordings.ZH_BESIDE[kind]).format(who=who, other=other, does=does)
    else:
        told = who + does
    behind = _behind(scene, tell, wordings.ZH_BEHIND, wordings.ZH_DRIPPING)
    return _filmed(
        before + told + after + behind,
        scene, tell, wordings.ZH_CAMERA, wordings.ZH_LOOK, wordings.ZH_LOOK_BEFORE,
    )  # fmt: skip


def _tell_en(scene: Scene, tell: _Teller) -> str:
    noun = tell.one(wordings.EN_GARMENT[scene.garment])
    garment = f"[garment_color:{scene.garment_color}] [garment:{noun}]"
    who = tell.one(wordings.EN_SUBJECT[scene.subject]) + " "
    wears = tell.one(wordings.EN_WEARS)
    if scene.look == "monochrome":
        garment = f"[garment:{noun}]"
        wears = wears.replace(" a ", " an ") if noun[0] in "aeiou" else wears
    who += wears.format(garment)
    place, says_weather = _place(scene, tell, wordings.EN_PLACE, wordings.EN_RAINY_ALLEY, "rain:")
    colors = {color: color for color in wordings.ZH_COLOR}
    prop = _prop(scene, tell, wordings.EN_PROP, wordings.EN_COLORED_PROP, colors)
    told = _act_en(who, scene, tell)
    during, after = "", ""
    if says_weather:
        if tell.one(("during", "during", "after")) == "during":
            during = tell.one(_windy(scene, wordings.EN_WEATHER, wordings.EN_WINDY_WEATHER))
        else:
            after = tell.one(
                _windy(scene, wordings.EN_WEATHER_AFTER, wordings.EN_WINDY_WEATHER_AFTER)
            )
    where = f" {place}" if place else ""
    holds = f" {prop}" if prop else ""
    order = tell.one(("place", "prop"))
    middle = where + during + holds if order == "place" else holds + where + during
    behind = _behind(scene, tell, wordings.EN_BEHIND, wordings.EN_DRIPPING)
    return _filmed(
        told + middle + after + behind,
        scene, tell, wordings.EN_CAMERA, wordings.EN_LOOK, wordings.EN_LOOK_BEFORE,
    )  # fmt: skip


def _act_en(who: str, scene: Scene, tell: _Teller) -> str:
    """Who does what, beside whom."""
    pattern, other = "{who} {does}", ""
    if scene.companion != "none":
        pattern = tell.one(wordings.EN_BESIDE)
        color = f"[companion_color:{scene.companion_color}]"
        other = tell.one(wordings.EN_COMPANION[scene.companion]).format(color)
    two = "{do}" in pattern
    action = tell.one((wordings.EN_ACTION_OF_TWO if two else wordings.EN_ACTION)[scene.action])
    together = " together" if pattern.endswith("{do} together") else ""
    action += together
    if tell.says(0.6, short=False, long=False):
        kind = "stand" if scene.action == "stand" else "move"
        directions = wordings.EN_DIRECTION_OF_TWO if two else wordings.EN_DIRECTION
        action += tell.one(directions[kind]).format(scene.direction)
    return pattern.removesuffix(together).format(who=who, other=other, does=action, do=action)


def _windy(
    scene: Scene, calm: Mapping[str, Sequence[str]], windy: Mapping[str, Sequence[str]]
) -> Sequence[str]:
    """The wordings for the weather, with or without wind."""
    return (windy if scene.wind == "windy" else calm)[scene.weather]


def _filmed(
    told: str,
    scene: Scene,
    tell: _Teller,
    cameras: Mapping[str, Sequence[str]],
    looks: Mapping[str, Sequence[str]],
    looks_before: Mapping[str, Sequence[str]],
) -> str:
    """Add how the scene is filmed, unless the camera is still and the look plain."""
    if scene.camera != "still":
        told += tell.one(cameras[scene.camera])
    if scene.look == "plain":
        return told
    if tell.one(("after", "after", "before")) == "before":
        return tell.one(looks_before[scene.look]) + told
    return told + tell.one(looks[scene.look])


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
    rainy = scene.weather == "rain" and scene.wind == "none"
    if weather and rainy and scene.place == "alley":
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
    if scene.look != "monochrome" and tell.says(0.8, short=False, long=False):
        color = f"[prop_color:{colors[scene.prop_color]}]"
        return tell.one(colored[scene.prop]).format(color)
    return tell.one(plain[scene.prop])


def _behind(
    scene: Scene, tell: _Teller, places: Mapping[str, Sequence[str]], dripping: Sequence[str]
) -> str:
    if not tell.says(0.35, short=False, long=True):
        return ""
    if scene.place == "alley" and scene.weather == "rain":
        return tell.one((*dripping, *places["alley"]))
    return tell.one(places[scene.place])


_COLOR = "_color"  # of a mark that tells the colour of a part
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
