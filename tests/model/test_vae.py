from dataclasses import fields, replace

import pytest
import torch
from tinywan.errors import ConfigError
from tinywan.vae import CausalConv, CausalVAE, ResBlock, VAEConfig, check_video_size
from torch import Tensor, nn

FRAMES, LATENT_FRAMES = 17, 5
SIDE = 16
TOLERANCE = 1e-5  # sums of another length are rounded otherwise
STILL = 1e-7  # what must not change at all
CHANGED = 1e-4


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    torch.manual_seed(4)
    config = VAEConfig(
        encoder_widths=(8, 12),
        decoder_widths=(8, 12),
        encoder_depth=1,
        decoder_depth=1,
        latent_channels=16,
        latents_mean=tuple(0.1 * i for i in range(16)),
        latents_std=tuple(1 + 0.1 * i for i in range(16)),
    )
    vae = CausalVAE(config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if name.endswith("time.weight"):  # zero at the start, which would hide every leak
            nn.init.normal_(parameter, std=0.3)
    return vae


@pytest.fixture
def video() -> Tensor:
    return torch.rand(1, 3, FRAMES, SIDE, SIDE) * 2 - 1


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, 16, LATENT_FRAMES, 2, 2)


def frames_that_differ(a: Tensor, b: Tensor) -> list[bool]:
    gaps = (a - b).abs().amax((0, 1, 3, 4))
    assert ((gaps <= STILL) | (gaps > CHANGED)).all()  # nothing in between: no doubt
    return (gaps > CHANGED).tolist()


def test_sizes_shrink_by_4_8_8_and_come_back(vae):
    latents = vae.encode(torch.zeros(2, 3, 9, 24, 16))
    assert latents.shape == (2, 16, 3, 3, 2)
    assert vae.decode(latents).shape == (2, 3, 9, 24, 16)


@pytest.mark.parametrize("frame", range(0, FRAMES, 2))
def test_a_latent_frame_knows_nothing_of_later_pixels(vae, video, frame):
    other = video.clone()
    other[:, :, frame:] += 0.5
    differ = frames_that_differ(vae.encode(video), vae.encode(other))
    # latent i stands for pixel frames 4i-3 .. 4i
    assert differ == [4 * i >= frame for i in range(LATENT_FRAMES)]


@pytest.mark.parametrize("changed", range(LATENT_FRAMES))
def test_a_pixel_frame_knows_nothing_of_later_latents(vae, latents, changed):
    other = latents.clone()
    other[:, :, changed:] += 0.5
    differ = frames_that_differ(vae.decode(latents, None), vae.decode(other, None))
    first = 0 if changed == 0 else 4 * changed - 3
    assert differ == [frame >= first for frame in range(FRAMES)]


def test_the_first_latent_frame_is_the_picture_alone(vae, video):
    picture = vae.encode(video[:, :, :1])
    torch.testing.assert_close(vae.encode(video)[:, :, :1], picture, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_encoding_in_chunks_equals_encoding_at_once(vae, video, chunk):
    torch.testing.assert_close(
        vae.encode(video, chunk=chunk), vae.encode(video), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_decoding_in_chunks_equals_decoding_at_once(vae, latents, chunk):
    torch.testing.assert_close(
        vae.decode(latents, chunk), vae.decode(latents, None), atol=TOLERANCE, rtol=0
    )


def largest_activation(vae: CausalVAE, frames: int, chunk: int | None) -> tuple[int, int]:
    """Most numbers that one convolution returns, encoding and decoding a clip of `frames`."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
        for module in vae.modules()
        if isinstance(module, CausalConv)
    ]
    latents = vae.encode(torch.zeros(1, 3, frames, SIDE, SIDE), chunk=chunk)
    encoding = max(sizes)
    sizes.clear()
    vae.decode(latents, chunk)
    for hook in hooks:
        hook.remove()
    return encoding, max(sizes)


def test_in_chunks_a_long_clip_needs_no_larger_activations_than_a_short_one(vae):
    assert largest_activation(vae, 41, chunk=2) == largest_activation(vae, 17, chunk=2)
    at_once, piecewise = largest_activation(vae, 41, None), largest_activation(vae, 41, 2)
    assert all(many > 3 * few for many, few in zip(at_once, piecewise, strict=True))


def test_latents_are_normalised_by_the_measured_mean_and_deviation(vae, video):
    mean, _ = vae.posterior(video)
    channel = torch.arange(16).view(1, -1, 1, 1, 1)
    expected = (mean - 0.1 * channel) / (1 + 0.1 * channel)
    torch.testing.assert_close(vae.encode(video), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(
        vae.decode(expected, None), vae.reconstruct(mean), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("depth", [2, 3])
def test_a_decoder_that_grew_decodes_as_before_and_can_learn_more(vae, latents, depth):
    grown = CausalVAE(replace(vae.config, decoder_depth=depth)).eval()
    blocks = sum(isinstance(layer, ResBlock) for layer in grown.decoder.layers)
    assert blocks == 3 * depth
    with torch.no_grad():
        assert not torch.allclose(grown.decode(latents), vae.decode(latents))
    grown.decoder.grow_from(vae.decoder)
    with torch.no_grad():
        assert torch.equal(grown.decode(latents), vae.decode(latents))
    grown.decode(latents).square().mean().backward()
    assert all(
        layer.time.weight.grad.any()
        for layer in grown.decoder.layers
        if isinstance(layer, ResBlock)
    )


def test_an_encoder_that_grew_encodes_as_before(vae, video):
    grown = CausalVAE(replace(vae.config, encoder_depth=4)).eval()
    assert len(grown.encoder.layers) == len(vae.encoder.layers) + 3
    grown.encoder.grow_from(vae.encoder)
    with torch.no_grad():
        assert torch.equal(grown.encode(video), vae.encode(video))


def test_an_encoder_that_got_wider_encodes_as_before_and_can_learn_more(vae, video):
    known = vae.config.encoder_widths
    grown = CausalVAE(replace(vae.config, encoder_widths=(known[0] + 4, 2 * known[1]))).eval()
    assert not torch.allclose(grown.posterior(video)[0], vae.posterior(video)[0], atol=0.1)
    grown.encoder.grow_from(vae.encoder)
    for mine, theirs in zip(grown.posterior(video), vae.posterior(video), strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    grown.posterior(video)[0].square().mean().backward()
    for name, layer in grown.encoder.named_modules():
        if isinstance(layer, CausalConv) and name != "head":
            new = layer.weight.grad[vae.encoder.get_submodule(name).shape[0] :]
            assert len(new) and new.any(1).all(), name


def test_a_few_steps_of_training_bring_the_picture_nearer():
    torch.manual_seed(4)
    vae = CausalVAE(VAEConfig(encoder_widths=(8, 16), decoder_widths=(8, 16)))
    video = (torch.arange(SIDE) / SIDE).expand(1, 3, 5, SIDE, SIDE) * 2 - 1
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        error = (vae.reconstruct(vae.posterior(video)[0]) - video).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((16, 96, 96), r"num_frames=16 does not fit the VAE: use 1 \+ 4k frames, e.g. 13 or 17"),
        ((18, 96, 96), r"num_frames=18 does not fit the VAE: .* e.g. 17 or 21"),
        ((80, 96, 96), r"num_frames=80 does not fit the VAE: .* e.g. 77 or 81"),
        ((0, 96, 96), "num_frames=0 does not fit the VAE: .* e.g. 1 or 5"),
        ((-3, 96, 96), "num_frames=-3 does not fit the VAE: .* e.g. 1 or 5"),
        ((17, 50, 96), "height=50 does not fit the VAE: use a multiple of 8, e.g. 48 or 56"),
        ((17, 96, 7), "width=7 does not fit the VAE: use a multiple of 8, e.g. 8 or 16"),
        ((17, 0, 96), "height=0 does not fit the VAE: use a multiple of 8, e.g. 8 or 16"),
    ],
)
def test_sizes_that_do_not_fit_get_the_nearest_that_do(size, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_video_size(*size)


def test_encode_refuses_such_a_video_too(vae):
    with pytest.raises(ConfigError, match="num_frames=4 does not fit"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))


@pytest.mark.parametrize("chunk", [0, -1, 1.5])
def test_pieces_of_no_length_get_a_sentence(vae, video, latents, chunk):
    sentence = f"chunk={chunk} cuts nothing: use 1 latent frame or more, or None for all at once"
    with pytest.raises(ConfigError, match=sentence):
        vae.encode(video, chunk=chunk)
    with pytest.raises(ConfigError, match=sentence):
        vae.decode(latents, chunk)


def test_the_patch_is_no_choice_as_the_stride_is_not():
    assert VAEConfig().patch == 4
    assert "patch" not in {field.name for field in fields(VAEConfig)}


def test_the_latent_statistics_must_match_the_channels():
    with pytest.raises(ConfigError, match="one number for each of the 32 latent channels; found 3"):
        VAEConfig(latents_mean=(0.0,) * 3)


@pytest.mark.parametrize("inference", [False, True])
def test_refined_latents_decode_more_exactly_and_nothing_else_changes(vae, video, inference):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.requires_grad_(True)
    try:
        with torch.inference_mode(inference), torch.random.fork_rng():
            latents = vae.encode(video)
            error = [(vae.decode(latents) - video).square().mean().item()]
            for steps in (2, 10):
                refined = vae.refine(video, latents, steps)
                error.append((vae.decode(refined) - video).square().mean().item())
                assert not refined.requires_grad
        assert error[0] > error[1] > error[2]
        assert all(weight.requires_grad and weight.grad is None for weight in vae.parameters())
    finally:
        vae.requires_grad_(False)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_refining_in_no_steps_is_refused(vae, video):
    with pytest.raises(ConfigError, match="steps=0 refine nothing: use 1 or more"):
        vae.refine(video, vae.encode(video), 0)
