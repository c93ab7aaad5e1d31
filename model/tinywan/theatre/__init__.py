"""The shadow theatre: a procedural world whose clips come with captions, masks and optical flow."""

from tinywan.theatre.caption import Caption, caption
from tinywan.theatre.painter import FPS, Clip, render
from tinywan.theatre.parse import parse
from tinywan.theatre.scene import (
    ACTIONS,
    CAMERAS,
    COLORS,
    COMPANION_COLORS,
    COMPANIONS,
    DIRECTIONS,
    GARMENTS,
    LOOKS,
    PLACES,
    PROPS,
    STAGING,
    SUBJECTS,
    WEATHERS,
    WINDS,
    Scene,
    companions_of,
    is_held_out,
    restage,
    sample_scene,
)
from tinywan.theatre.sheet import contact_sheet, picture_sheet

__all__ = [
    "ACTIONS",
    "CAMERAS",
    "COLORS",
    "COMPANIONS",
    "COMPANION_COLORS",
    "DIRECTIONS",
    "FPS",
    "GARMENTS",
    "LOOKS",
    "PLACES",
    "PROPS",
    "STAGING",
    "SUBJECTS",
    "WEATHERS",
    "WINDS",
    "Caption",
    "Clip",
    "Scene",
    "caption",
    "companions_of",
    "contact_sheet",
    "is_held_out",
    "parse",
    "picture_sheet",
    "render",
    "restage",
    "sample_scene",
]
