"""wanviz: see which word of the prompt steers which region of which frame of a video."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wanviz.adapters import hook_names
    from wanviz.attribution import Attribution, attribute
    from wanviz.capture import capture, observe, plan
    from wanviz.errors import (
        BudgetError,
        CaptureError,
        CaptureWarning,
        KeepError,
        OptionError,
        PhraseError,
        TraceFileError,
        WanvizError,
    )
    from wanviz.plots import plot_frames, plot_routing, plot_storyboard
    from wanviz.report import report
    from wanviz.show import show
    from wanviz.trace import Trace

__version__ = version("wanviz")

__all__ = [
    "Attribution",
    "BudgetError",
    "CaptureError",
    "CaptureWarning",
    "KeepError",
    "OptionError",
    "PhraseError",
    "Trace",
    "TraceFileError",
    "WanvizError",
    "attribute",
    "capture",
    "hook_names",
    "observe",
    "plan",
    "plot_frames",
    "plot_routing",
    "plot_storyboard",
    "report",
    "show",
]

# Names are loaded when first used: torch and matplotlib take seconds, and `wanviz --help` needs none.
_HOMES = {
    "adapters": ("hook_names",),
    "attribution": ("Attribution", "attribute"),
    "capture": ("capture", "observe", "plan"),
    "errors": tuple(name for name in __all__ if name.endswith(("Error", "Warning"))),
    "plots": ("plot_frames", "plot_routing", "plot_storyboard"),
    "report": ("report",),
    "show": ("show",),
    "trace": ("Trace",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """wanviz.capture, report and show are the functions, also once the modules are loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
