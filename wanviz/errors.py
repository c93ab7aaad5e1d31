"""Every error of wanviz is a sentence: what was asked, what was found, what would work."""

from __future__ import annotations

from typing import Any


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


class EncodingError(WanvizError, OSError):
    """A kept text encoding is missing or damaged, or could not be written."""


class ContentError(WanvizError, ValueError):
    """A prompt asks for, or a video shows, what is to be kept out; `findings` tells what."""

    def __init__(self, message: str, findings: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings
