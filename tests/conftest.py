"""What every test shares: a fixed seed, and which tests this machine can run."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

SEED = 20260
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU or a browser where there is none, with a sentence; in CI a browser must be there."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("this test compares with an NVIDIA GPU, and torch sees none on this machine")
    if item.get_closest_marker("browser") and not any(shutil.which(name) for name in BROWSERS):
        sentence = f"this test drives a browser, and none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("CI"):
            pytest.fail(f"{sentence}; in CI it must be")
        pytest.skip(sentence)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same state of the global generators."""
    torch.manual_seed(SEED)


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """Products and convolutions on a GPU in whole float32, as on a CPU."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator that is the same for every test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def chromium():
    """A headless browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sentence = "this test drives a browser through Playwright, which is not installed"
        if os.environ.get("CI"):
            pytest.fail(f"{sentence}; in CI it must be")
        pytest.skip(sentence)
    path = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def painted() -> Callable[..., Any]:
    """Makes traces whose maps are known: a theatre clip, and its masks in place of attention.

    `painted(prompt=..., layers=4, truncated_at=None, video=True, keep=(("layer",),))`; with "head" or "step" beside
    "layer", masses are shares of those of the layer, 0.5 and 1.5 for the two heads. With `negative` there is a second
    branch, whose masses are even.
    """
    from tinywan import theatre

    from wanviz.contents import Contents
    from wanviz.grid import Grid
    from wanviz.trace import Trace
    from wanviz.words import encoded_prompt, split_words

    scene = theatre.Scene(
        "woman", "qipao", "red", "umbrella", "yellow", "alley", "rain", "walk", "right", 3
    )
    clip = theatre.render(scene)
    told = theatre.caption(scene, "zh", detail="long")

    def make(
        prompt: str = told.text,
        layers: int = 4,
        truncated_at: int | None = None,
        video: bool = True,
        keep: tuple[tuple[str, ...], ...] = (("layer",),),
        frames: str | None = "exact",
        steps: int = 6,
        negative: str | None = None,
        previews: bool = False,
        links: bool = False,
    ) -> Trace:
        rng = np.random.default_rng(SEED)
        whole = encoded_prompt(prompt, tuple((i, i + 1) for i in range(len(prompt))), None)
        spans = [word.span for word in split_words(whole)]
        spans = [span for span in spans if truncated_at is None or span[1] <= truncated_at][:60]
        encoded = encoded_prompt(prompt, tuple(spans), truncated_at)
        mass = rng.uniform(0.05, 0.1, (layers, len(spans) + 2, 5, 12, 12))
        for part, places in told.spans.items() if prompt == told.text else ():
            mask = clip.masks[part][[0, 2, 6, 10, 14]].reshape(5, 12, 8, 12, 8).mean((2, 4))
            for index, token in enumerate(encoded.tokens):
                if any(max(a, token.span[0]) < min(b, token.span[1]) for a, b in places):
                    mass[:, index] += mask * np.linspace(0.5, 2, layers)[:, None, None, None]
        mass[:, -1] += 1
        mass = (mass / mass.sum(axis=1, keepdims=True)).astype(np.float32)
        apart = np.abs(np.subtract.outer(range(5), range(5)))
        looks = np.exp(-apart * np.linspace(0.3, 1.5, layers)[:, None, None])
        looks *= 1 + np.triu(np.ones((5, 5)), 1)  # more at later frames than at earlier ones
        looks[: layers // 2, apart > 1] = np.nan  # a temporal window in the lower half
        looks = (looks / np.nansum(looks, axis=-1, keepdims=True)).astype(np.float32)
        by_axes = {("layer",): (mass, looks), (): (mass.mean(axis=0), np.nanmean(looks, axis=0))}
        shares = {
            "head": np.array((0.5, 1.5)),
            "step": np.linspace(0.25, 1.75, steps),
        }  # means of 1
        for axes in (("head",), ("step",), ("head", "step")):
            parts = np.ones(())
            for axis in axes:
                parts = np.multiply.outer(parts, shares[axis])
            of_layer = (slice(None), *(None for _ in axes))
            each = parts.astype(np.float32)[None, ..., None, None, None, None] * mass[of_layer]
            by_axes["layer", *axes] = (
                each,
                np.broadcast_to(looks[of_layer], (layers, *parts.shape, 5, 5)),
            )
        arrays: dict[str, Any] = {
            "cond/load": rng.dirichlet(np.full(10, 5), (layers, steps)).astype(np.float32),
            "cond/where": np.full((layers, 10, 5, 12, 12), 0.3, np.float32),
        }
        for axes in keep:
            name = "+".join(axes) or "all"
            arrays[f"cond/words/{name}"], arrays[f"cond/frames/{name}"] = by_axes[axes]
        prompts = {"cond": encoded}
        if negative is not None:
            prompts["uncond"] = encoded_prompt(
                negative, tuple((i, i + 1) for i in range(len(negative))), None
            )
            for axes in keep:
                name = "+".join(axes) or "all"
                found, looked = by_axes[axes]
                count = len(negative) + 2
                even = np.full((*found.shape[:-4], count, *found.shape[-3:]), 1 / count, np.float32)
                arrays[f"uncond/words/{name}"], arrays[f"uncond/frames/{name}"] = even, looked
        together = rng.uniform(0.02, 0.2, (layers, 10, 10)).astype(np.float32)
        arrays["cond/together"] = (together + together.transpose(0, 2, 1)) / 2
        if video:
            arrays["video"] = clip.frames
        if links:
            followed = rng.uniform(0, 1, (5, 16, 5, 12, 12)).astype(np.float32) ** 9
            arrays["cond/links"] = followed / followed.sum((2, 3, 4), keepdims=True)
        if previews:  # ever less grey
            shown = clip.frames[[0, 3, 7, 11, 15]]
            shares = np.linspace(0, 1, steps)[:, None, None, None, None]
            arrays["previews"] = np.round(128 + (shown - 128.0) * shares).astype(np.uint8)
        sigmas = np.linspace(1, 0.1, steps)
        record = {
            "prompt": prompt,
            "negative_prompt": "",
            "truncated_at": truncated_at,
            "seed": 3,
            "model": "painted",
            "steps": [
                {
                    "step": i,
                    "sigma": float(sigma),
                    "timestep": 1000 * float(sigma),
                    "noise_expert": "high" if sigma > 0.8 else "low",
                }
                for i, sigma in enumerate(sigmas)
            ],
            "frames": frames,
            "routing": True,
            "failed": {},
            "versions": {"wanviz": "0"},
        }
        contents = Contents(
            arrays=arrays,
            keep=keep,
            grid=Grid(5, 12, 12),
            labels={"layer": tuple(range(layers)), "step": tuple(range(steps)), "head": (0, 1)},
            prompts=prompts,
            words={name: split_words(found) for name, found in prompts.items()},
            record=record,
        )
        return Trace(contents)

    return make
