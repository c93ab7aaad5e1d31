"""Errors that say what was asked, what was found, and what would work."""


class TinywanError(Exception):
    """Root of everything that tinywan raises on purpose."""


class ConfigError(TinywanError, ValueError):
    """An option or a shape that cannot work, named together with one that can."""


class PromptError(TinywanError, ValueError):
    """A prompt that cannot be encoded."""


class CheckpointError(TinywanError, ValueError):
    """A checkpoint folder or file that is missing, truncated, foreign or damaged."""


class DeviceError(TinywanError, ValueError):
    """A device that this machine does not have."""
