"""Every error of wanviz is a sentence: what was asked, what was found, what would work."""

from __future__ import annotations


class WanvizError(Exception):
    """Root of all errors that wanviz raises on purpose."""


class OptionError(WanvizError, ValueError):
    """An argument has a value that nobody can act on."""


class PhraseError(WanvizError, LookupError):
    """A phrase is absent from the prompt, or occurs more than once."""


class KeepError(WanvizError, ValueError):
    """A trace was asked for an axis that its capture did not keep."""


class BudgetError(WanvizError, MemoryError):
    """A capture would keep more bytes than its budget allows."""


class CaptureError(WanvizError, RuntimeError):
    """A capture saw nothing, saw too much, or one of its reducers failed."""


class TraceFileError(WanvizError, ValueError):
    """A file is not a trace, is damaged, or could not be written."""


class CaptureWarning(UserWarning):
    """Something of a generation was not computed, so a trace has a gap there."""


class ReportError(WanvizError, OSError):
    """A report, a picture or a video could not be written."""
