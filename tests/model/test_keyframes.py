"""Pictures that a clip has to pass through, and clips longer than a window."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tinywan.batches import Clips, Phase
from tinywan.checkpoint import SHIPPED, fitted
from tinywan.dit import DiT
from tinywan.errors import ConfigError, PromptError
from tinywan.keyframes import encode_keyframes, latent_place, random_frames
from tinywan.pipeline import OVERLAP, TextToVideoPipeline
from tinywan.presets import preset
from tinywan.text import UnigramTokenizer
from torch import nn

QUICK = {"num_inference_steps": 2, "progress_bar": False}
SIZE = 32


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).random((SIZE, SIZE, 3), dtype=np.float32)


@pytest.fixture
def pipe() -> TextToVideoPipeline:
    """Random weights that read keyframes."""
    config = preset("debug")
    dit = replace(config.dit, condition_channels=4 + config.vae.latent_channels)
    plain = TextToVideoPipeline.from_preset("debug", seed=1)
    config = fitted(replace(config, dit=dit), UnigramTokenizer.from_pretrained(SHIPPED))
    torch.manual_seed(1)
    model = DiT(config.dit)
    nn.init.normal_(model.proj_out.weight, std=0.05)
    return TextToVideoPipeline(config, plain.tokenizer, plain.text_encoder, plain.vae, model, model)


def test_a_pixel_frame_stands_where_the_causal_vae_puts_it():
    assert latent_place(0) == (0, 3)
    assert [latent_place(frame) for frame in (1, 2, 3, 4)] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert latent_place(16) == (4, 3)


def test_mask_and_latents_stand_where_the_keyframe_does_and_are_zero_elsewhere(pipe, picture):
    found = encode_keyframes(pipe.vae, {0: picture, 6: 1 - picture}, 9, SIZE, SIZE)
    assert found.shape == (1, 20, 3, 4, 4)
    mask, latents = found[0, :4], found[0, 4:]
    assert mask.sum() == 2 * 4 * 4
    assert (mask[3, 0] == 1).all()
    assert (mask[1, 2] == 1).all()
    assert (latents[:, 1] == 0).all()
    for frame, value in ((0, picture), (2, 1 - picture)):
        video = torch.from_numpy(value).permute(2, 0, 1)[None, :, None] * 2 - 1
        torch.testing.assert_close(latents[:, frame], pipe.vae.encode(video)[0, :, 0])


def test_pictures_may_be_bytes_floats_or_pil_and_minus_one_is_the_last_frame(pipe, picture):
    whole = (picture * 255).round().astype(np.uint8)
    forms = [{8: whole}, {8: whole / 255}, {-1: Image.fromarray(whole)}]
    first, *others = (encode_keyframes(pipe.vae, form, 9, SIZE, SIZE) for form in forms)
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=0)


def test_a_keyframe_changes_the_video_and_nothing_given_is_a_mask_of_zeros(pipe, picture):
    plain = pipe("a dog", seed=1, **QUICK).frames
    given = pipe("a dog", seed=1, keyframes={0: picture}, **QUICK).frames
    assert np.abs(given - plain).max() > 1e-3
    assert pipe("a dog", seed=1, keyframes={}, **QUICK).frames.tobytes() == plain.tobytes()


def test_guidance_leaves_given_latent_frames_alone(pipe, picture):
    """Pixel frame 6 lies in latent frame 2; of the other two, both are guided."""
    answers, steps = [], []
    hooks = [
        pipe.transformer.register_forward_hook(lambda m, a, output: answers.append(output)),
        pipe.taps["noise_pred"].register_forward_hook(lambda m, a, output: steps.append(output)),
    ]
    options = {"keyframes": {6: picture}, "num_frames": 9, "guidance_scale": 3.0}
    pipe(["a dog", "a cat"], height=SIZE, width=SIZE, seed=1, **options, **QUICK)
    for hook in hooks:
        hook.remove()
    for answer, step in zip(answers, steps, strict=True):
        cond, uncond = answer.chunk(2)
        guided = uncond + 3 * (cond - uncond)
        assert (guided - cond).abs().amax((0, 1, 3, 4)).min() > 1e-4
        wanted = torch.cat([guided[:, :, :2], cond[:, :, 2:]], dim=2)
        torch.testing.assert_close(step, wanted, atol=1e-5, rtol=0)


def test_several_prompts_share_the_keyframes(pipe, picture):
    options = {"keyframes": {0: picture}, "guidance_scale": 1.0, "output_type": "latent"}
    both = pipe(["a dog", "a dog"], seed=1, **options, **QUICK).frames
    assert both.shape[0] == 2


@pytest.mark.parametrize(
    ("keyframes", "sentence"),
    [
        ({9: np.zeros((32, 32, 3))}, "keyframe for frame 9, and the clip has frames 0 to 8"),
        ({-10: np.zeros((32, 32, 3))}, "keyframe for frame -10, and the clip has"),
        (
            {1: np.zeros((32, 32, 3)), 4: np.zeros((32, 32, 3))},
            "keyframes 1 and 4 fall into one latent frame",
        ),
        ({0: np.zeros((16, 32, 3))}, r"is shaped \(16, 32, 3\); a clip of 32 x 32 pixels"),
        ({0: np.full((32, 32, 3), 7.0)}, "values from 7.0 to 7.0: use uint8"),
        ({0: np.full((32, 32, 3), np.nan)}, "use uint8 in 0..255 or floats"),
        ({0: np.zeros((32, 32, 3), dtype=int)}, "has int64 values"),
    ],
)
def test_a_keyframe_that_cannot_be_gets_a_sentence(pipe, keyframes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pipe("a dog", keyframes=keyframes, **QUICK)
    assert pipe.current_request is None


def test_a_model_without_keyframes_says_so(picture):
    plain = TextToVideoPipeline.from_preset("debug")
    with pytest.raises(ConfigError, match=r"was not trained with keyframes \(condition_channels=0"):
        plain("a dog", keyframes={0: picture}, **QUICK)
    with pytest.raises(ConfigError, match="was not trained with keyframes"):
        next(plain.stream("a dog", num_frames=20))


@pytest.mark.parametrize("num_frames", [1, 9, 10, 13, 20])
def test_a_stream_has_as_many_frames_as_were_asked_for(pipe, num_frames):
    parts = list(pipe.stream("a dog", num_frames=num_frames, seed=1, **QUICK))
    assert sum(len(part) for part in parts) == num_frames
    assert all(part.shape[1:] == (SIZE, SIZE, 3) for part in parts)


def test_each_window_of_a_stream_begins_with_the_end_of_the_one_before(pipe, monkeypatch):
    windows = []
    call = TextToVideoPipeline.__call__

    def watched(self, prompt, **options):
        out = call(self, prompt, **options)
        windows.append((options["keyframes"], out.frames[0]))
        return out

    monkeypatch.setattr(TextToVideoPipeline, "__call__", watched)
    first, second, third = pipe.stream("a dog", num_frames=16, seed=1, **QUICK)
    assert [len(part) for part in (first, second, third)] == [9, 4, 3]
    for (_, before), (given, after), shown in zip(windows, windows[1:], (second, third)):  # noqa: B905
        assert given.keys() == {0, OVERLAP - 1}
        assert np.array_equal(given[0], before[-OVERLAP])
        assert np.array_equal(given[OVERLAP - 1], before[-1])
        assert np.array_equal(shown, after[OVERLAP:][: len(shown)])


def test_a_story_has_a_text_for_each_window_and_the_last_goes_on(pipe, monkeypatch):
    asked = []
    call = TextToVideoPipeline.__call__

    def watched(self, prompt, **options):
        asked.append(prompt)
        return call(self, prompt, **options)

    monkeypatch.setattr(TextToVideoPipeline, "__call__", watched)
    told = np.concatenate([*pipe.stream(["a dog", "a cat"], num_frames=16, seed=1, **QUICK)])
    assert asked == ["a dog", "a cat", "a cat"]
    plain = np.concatenate([*pipe.stream("a dog", num_frames=16, seed=1, **QUICK)])
    assert np.array_equal(told[:9], plain[:9])
    assert not np.array_equal(told[9:], plain[9:])


@pytest.mark.parametrize(
    ("story", "num_frames", "sentence"),
    [
        (["a dog", "a cat"], 9, "2 texts for 9 frames, which are 1 windows"),
        (["a", "b", "c", "d"], 17, "4 texts for 17 frames, which are 3 windows"),
        (["a dog", " "], 20, "the prompt is empty"),
        ([], 20, "the prompt is empty"),
    ],
)
def test_a_story_that_cannot_be_told_gets_a_sentence(pipe, story, num_frames, sentence):
    with pytest.raises(PromptError, match=sentence):
        pipe.stream(story, num_frames=num_frames)


def test_a_stream_is_the_same_for_a_seed(pipe):
    first, again, other = (
        np.concatenate([*pipe.stream("a dog", num_frames=14, seed=seed, **QUICK)])
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"num_frames": 0}, "num_frames=0"), ({"num_frames": 9, "output_type": "np"}, "output_type")],
)
def test_a_stream_that_cannot_be_gets_a_sentence(pipe, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        next(pipe.stream("a dog", **options))


def test_frames_given_in_training_are_of_the_clip_and_apart():
    seen = set()
    for seed in range(300):
        frames = random_frames(17, np.random.default_rng(seed))
        assert all(0 <= frame < 17 for frame in frames)
        assert len({latent_place(frame)[0] for frame in frames}) == len(frames)
        seen.add(frames)
    assert {(), (0,), (16,), (0, 16), (0, 4)} < seen
    assert any(frames and not set(frames) & {0, 4, 16} for frames in seen)
    assert random_frames(1, np.random.default_rng(0)) == ()


def test_a_training_batch_gives_frames_of_its_own_clips(pipe):
    phase = Phase(steps=1, num_frames=17, batch=6, micro_batch=1)
    batch = Clips(pipe.config, pipe.tokenizer, pipe.vae).batch(0, phase)
    assert batch.condition.shape == (6, 20, 5, 4, 4)
    first = batch.condition[:, 3, 0, 0, 0].bool()  # clips whose first frame is given
    assert 0 < first.sum() < 6
    torch.testing.assert_close(
        batch.condition[first, 4:, 0], batch.latents[first, :, 0], atol=1e-5, rtol=0
    )
