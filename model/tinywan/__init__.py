"""A compact but complete text-to-video model, to be read in an evening and looked into for longer."""

from tinywan.errors import CheckpointError, ConfigError, DeviceError, PromptError, TinywanError
from tinywan.pipeline import DenoiserCall, GenerationRequest, TextToVideoPipeline, VideoOutput
from tinywan.wan import load_wan

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DenoiserCall",
    "DeviceError",
    "GenerationRequest",
    "PromptError",
    "TextToVideoPipeline",
    "TinywanError",
    "VideoOutput",
    "load_wan",
]
