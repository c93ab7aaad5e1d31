"""What quality.py measures is what it says, on clips whose truth is known."""

import math

import numpy as np
import pytest
import torch
from tinywan import theatre
from tinywan.errors import ConfigError
from tinywan.pipeline import TextToVideoPipeline
from tinywan.quality import (
    count_token_experts,
    flicker,
    keyframe_psnr,
    psnr,
    sample_scenes,
    unsteadiness,
    vae_psnr,
)

PROMPT = "a woman in a red qipao walks in the rain"


def noisy(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_psnr_of_a_known_error() -> None:
    true = np.full((4, 5), 0.5)
    assert psnr(true + 0.1, true) == pytest.approx(20)
    assert psnr(true, true) == math.inf


def test_what_moves_as_a_whole_does_not_flicker_and_what_changes_does() -> None:
    world = noisy(64)
    moving = np.stack([world[8 : 8 + 40, 2 * t : 2 * t + 40] for t in range(5)])
    # a block at the edge comes from outside the frame before; the others are found exactly
    assert flicker(moving) < 0.3 * flicker(np.stack([noisy(40, t) for t in range(5)]))
    still = np.repeat(world[None], 4, axis=0)
    assert flicker(still) == 0
    blinking = still.astype(np.float32) / 255 * 0.8
    blinking[1::2] += 0.1
    assert flicker(blinking) == pytest.approx(25.5, abs=3)  # less, where a neighbour fits better
    assert flicker(blinking) > 10


def test_uint8_and_float_flicker_alike() -> None:
    clip = theatre.render(sample_scenes(1, 0, "whole")[0], 5).frames
    assert flicker(clip) == pytest.approx(flicker(clip / np.float32(255)), rel=1e-4)


def test_one_frame_cannot_flicker() -> None:
    with pytest.raises(ConfigError, match="give a clip of two or more"):
        flicker(noisy(16)[None])


def square_at(columns: list[int]) -> np.ndarray:
    region = np.zeros((len(columns), 20, 60), bool)
    for frame, column in enumerate(columns):
        region[frame, 5:9, column : column + 4] = True
    return region


def test_an_even_way_is_steady_and_a_jump_back_and_forth_is_not() -> None:
    assert unsteadiness(square_at([2, 5, 8, 11])) == pytest.approx(0)
    # velocities 3, -3, 3: they change by 6 twice
    assert unsteadiness(square_at([2, 5, 2, 5])) == pytest.approx(6)


def test_what_is_hidden_now_and_then_is_passed_over() -> None:
    region = square_at([2, 5, 8, 30, 14, 17, 20])
    region[3] = False
    assert unsteadiness(region) == pytest.approx(0)
    assert math.isnan(unsteadiness(region[2:4]))


def test_scenes_are_held_out_and_of_the_world_asked_for() -> None:
    scenes = sample_scenes(30, 4, "whole")
    assert all(theatre.is_held_out(scene) for scene in scenes)
    assert {scene.camera for scene in scenes} > {"still"}
    assert {scene.camera for scene in sample_scenes(30, 4, "first")} == {"still"}


def test_a_vae_that_forgets_nothing_has_infinite_psnr_and_one_that_shifts_has_less() -> None:
    class Same:
        mean = torch.zeros(1)
        shift = 0.0

        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return video

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents + self.shift

    vae = Same()
    scenes = sample_scenes(2, 0, "first")
    assert min(vae_psnr(vae, scenes, 5, 32)) > 120  # type: ignore[arg-type]
    vae.shift = 0.02  # of 2: 0.01 of 1, less where it is clipped
    assert vae_psnr(vae, scenes, 5, 32) == pytest.approx([40, 40], abs=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pipe() -> TextToVideoPipeline:
    return TextToVideoPipeline.from_preset("debug")


def test_keyframes_are_compared_with_what_was_given(pipe: TextToVideoPipeline) -> None:
    given = []

    class Obedient:
        config = pipe.config

        def __call__(self, text: str, *, keyframes: dict, seed: int, **options: object) -> object:
            assert options == {"progress_bar": False, "num_inference_steps": 2}
            given.append((text, seed))
            clip = np.zeros((9, 32, 32, 3), np.float32)
            clip[0], clip[-1] = keyframes[0], np.clip(keyframes[-1] + 0.1, 0, 1)
            return type("Output", (), {"frames": clip[None]})

    scenes = sample_scenes(2, 1, "first")
    prompts = [(scene, f"scene {number}") for number, scene in enumerate(scenes)]
    found = keyframe_psnr(Obedient(), prompts, 8, num_inference_steps=2)  # type: ignore[arg-type]
    assert given == [("scene 0", 8), ("scene 1", 9)]
    assert found["first"] == [math.inf, math.inf]
    assert found["last"] == pytest.approx([20, 20], abs=1)


def test_every_token_of_every_layer_and_step_is_counted(pipe: TextToVideoPipeline) -> None:
    dit = pipe.config.dit
    with count_token_experts(pipe) as counts:
        pipe(PROMPT, seed=0, num_inference_steps=3, guidance_scale=1.0, progress_bar=False)
    layers = {name.split(".")[0] for name in counts}
    assert layers == {"transformer", "transformer_2"}
    tokens = 3 * 4 * 4  # latent frames, rows, columns
    total = sum(int(count.sum()) for count in counts.values())
    assert total == 3 * dit.num_layers * tokens * dit.top_k
    assert all(count.shape == (dit.num_experts,) for count in counts.values())
    before = {name: count.clone() for name, count in counts.items()}
    pipe(PROMPT, seed=0, num_inference_steps=1, progress_bar=False)
    assert all(torch.equal(counts[name], before[name]) for name in counts)  # hooks are gone
