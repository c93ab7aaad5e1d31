"""wanviz: see which word of the prompt steers which region of which frame of a video."""

from importlib.metadata import version

from wanviz.adapters import hook_names
from wanviz.capture import Plan, capture, plan
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
from wanviz.trace import Trace
from wanviz.words import Token, Word

__version__ = version("wanviz")

__all__ = [
    "BudgetError",
    "CaptureError",
    "CaptureWarning",
    "KeepError",
    "OptionError",
    "PhraseError",
    "Plan",
    "Token",
    "Trace",
    "TraceFileError",
    "WanvizError",
    "Word",
    "capture",
    "hook_names",
    "plan",
]
