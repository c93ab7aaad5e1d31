"""The shadow theatre: a procedural world whose clips come with captions, masks and optical flow."""

from tinywan.theatre.caption import Caption, caption
from tinywan.theatre.painter import FPS, Clip, render
from tinywan.theatre.parse import parse
from tinywan.theatre.scene import (
    ACTIONS,
    COLORS,
    DIRECTIONS,
    GARMENTS,
    PLACES,
    PROPS,
    SUBJECTS,
    WEATHERS,
    Scene,
    is_held_out,
    sample_scene,
)
from tinywan.theatre.sheet import contact_sheet, picture_sheet

__all__ = [
    "ACTIONS",
    "COLORS",
    "DIRECTIONS",
    "FPS",
    "GARMENTS",
    "PLACES",
    "PROPS",
    "SUBJECTS",
    "WEATHERS",
    "Caption",
    "Clip",
    "Scene",
    "caption",
    "contact_sheet",
    "is_held_out",
    "parse",
    "picture_sheet",
    "render",
    "sample_scene",
]
