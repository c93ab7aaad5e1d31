"""Tiny random Wan pipelines of diffusers, whose tokenizer knows every letter that the tests use."""

from typing import Any

import torch

SIZE = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "output_type": "np"}
ENGLISH = "a woman in a red qipao walks in the rain with an umbrella"
CHINESE = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
TEXTS = (
    ENGLISH, CHINESE, "A cat and a dog bake a cake, the cat measures flour carefully.",
    "白猫和黑狗在厨房里做蛋糕，阳光从窗户照进来。", "a child runs to the left on a beach at night",
    "镜头缓缓推近，雪花飘落在街道上", "low quality, blurred, static; worst quality?",
    "it's well-known that 3.5 km/h ABC don't naïve café O'Brien state-of-the-art! (“”—…) ,.;'\"&/",
    "😀 👩\u200d👧 ABC 12 fi 1⁄2 é 한국 日本語 مرحبا \u200b No5 1 kg 《》「」阳光厨房。！",
)  # fmt: skip


def transformer(seed: int = 0, **changes: Any) -> Any:
    """A random denoiser of two layers."""
    from wanviz.adapters.random_wan import random_transformer

    return random_transformer(seed, **changes)


def parts() -> dict[str, Any]:
    """Text encoder, VAE, scheduler and tokenizer."""
    from wanviz.adapters.random_wan import random_parts

    return random_parts(TEXTS)


def wan21(**changes: Any) -> Any:
    """Like Wan2.1-T2V: one denoiser."""
    from wanviz.adapters.random_wan import random_wan

    return random_wan(1, TEXTS, **changes)


def wan22(**changes: Any) -> Any:
    """Like Wan2.2-T2V-A14B: two noise experts."""
    from wanviz.adapters.random_wan import random_wan

    return random_wan(2, TEXTS, **changes)


def quiet(pipe: Any) -> Any:
    """Without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: Any = ENGLISH, seed: int = 7, **options: Any) -> Any:
    """A small video, or its latents."""
    asked = {"negative_prompt": "blurred", **SIZE, **options}
    generator = torch.Generator().manual_seed(seed)
    if "prompt_embeds" in asked:
        prompt = None
    return pipe(prompt, generator=generator, **asked).frames
