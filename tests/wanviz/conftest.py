"""A random model of milliseconds, one small generation, and one trace of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinywan

import wanviz

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
SMALL = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 4}

Generate = Callable[..., np.ndarray]


@pytest.fixture
def pipe() -> Any:
    return tinywan.TextToVideoPipeline.from_preset("debug", seed=0)


@pytest.fixture
def generate(pipe: Any) -> Generate:
    """Draw a small video: a function of a prompt and options, to its frames."""

    def run(prompt: str | list[str] = PROMPT, **options: Any) -> np.ndarray:
        options = {"seed": 7, "progress_bar": False, **SMALL, **options}
        return pipe(prompt, **options).frames

    return run


@pytest.fixture
def trace(pipe: Any, generate: Generate) -> wanviz.Trace:
    with wanviz.capture(pipe, branches=("cond", "uncond")) as trace:
        generate(negative_prompt="blurred")
    return trace
