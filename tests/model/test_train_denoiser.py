"""The denoiser's loss, and the two noise experts that grow from one."""

import pytest
import torch
from tinywan import flow
from tinywan.checkpoint import SHIPPED, fitted
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import preset
from tinywan.text import UnigramTokenizer
from tinywan.train_denoiser import Denoiser, DenoiserRecipe, denoiser_loss
from tinywan.trainer import TrainerConfig
from torch import nn

LATENTS = (4, 16, 2, 3, 3)  # b c f h w
RECIPE = DenoiserRecipe(TrainerConfig(steps=1), phases=())
SUMS_IN_ANOTHER_ORDER = 1e-6


@pytest.fixture
def config():
    return fitted(preset("debug"), UnigramTokenizer.from_pretrained(SHIPPED))


def speaking(config, two_experts: bool = False) -> Denoiser:
    """A denoiser that is not silent, as after training."""
    model = Denoiser(config, two_experts)
    for module in model.modules():
        if getattr(module, "proj_out", None) is not None:
            nn.init.normal_(module.proj_out.weight, std=0.1)
    return model


def batch(config, sigma: list[float]):
    """Arguments of the loss: ids, mask, latents, noise, sigma."""
    ids = torch.randint(3, 200, (len(sigma), 7))
    shape = (len(sigma), *LATENTS[1:])
    return (
        ids, torch.ones_like(ids, dtype=torch.bool), torch.randn(shape), torch.randn(shape),
        torch.tensor(sigma),
    )  # fmt: skip


def test_the_loss_is_the_squared_error_of_the_velocity_and_the_routers_share(config):
    model = speaking(config).train()
    ids, mask, latents, noise, sigma = batch(config, [0.2, 0.5, 0.7, 0.95])
    loss, parts = denoiser_loss(model, ids, mask, latents, noise, sigma, RECIPE)
    noisy = (1 - sigma)[:, None, None, None, None] * latents
    noisy = noisy + sigma[:, None, None, None, None] * noise
    predicted = model.transformer(noisy, 1000 * sigma, model.text_encoder(ids, mask))
    error = (predicted - (noise - latents)).square().mean().item()
    assert parts["velocity"] == pytest.approx(error, rel=1e-5)
    whole = error + RECIPE.balance * parts["balance"] + RECIPE.z * parts["z"]
    assert loss.item() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("sigma", "learns"), [(0.95, "transformer"), (0.5, "transformer_2")])
def test_each_noise_expert_learns_on_its_side_alone(config, sigma, learns):
    model = speaking(config, two_experts=True).train()
    denoiser_loss(model, *batch(config, [sigma] * 2), RECIPE)[0].backward()
    for name in ("transformer", "transformer_2"):
        touched = any(p.grad is not None for p in getattr(model, name).parameters())
        assert touched is (name == learns)


def test_a_noise_expert_that_is_not_asked_does_not_count_its_last_answer(config):
    model = speaking(config, two_experts=True).train()
    denoiser_loss(model, *batch(config, [0.95] * 2), RECIPE)[0].backward()
    denoiser_loss(model, *batch(config, [0.5] * 2), RECIPE)[0].backward()
    assert all(module.moe.losses is None for module in model.transformer.blocks)


def test_a_batch_of_both_sides_is_split_and_put_together_again(config):
    model = speaking(config, two_experts=True).eval()
    sigma = torch.tensor([0.3, 0.9, config.boundary_ratio, 0.1])
    noisy, embeds = torch.randn(LATENTS), torch.randn(4, 7, config.text.dim)
    found = model(noisy, sigma, embeds)
    for row, name in enumerate(("transformer_2", "transformer", "transformer", "transformer_2")):
        one = slice(row, row + 1)
        alone = getattr(model, name)(noisy[one], sigma[one] * flow.NUM_TRAIN_TIMESTEPS, embeds[one])
        torch.testing.assert_close(found[one], alone, atol=SUMS_IN_ANOTHER_ORDER, rtol=1e-4)


def test_two_noise_experts_start_as_the_one_they_were(config):
    trunk = TextToVideoPipeline.from_preset("debug", seed=3)
    trunk.transformer_2 = trunk.transformer
    model = Denoiser(config, two_experts=True)
    model.load_pipeline(trunk)
    pipe = model.pipeline(config, trunk.tokenizer, trunk.vae)
    assert pipe.transformer_2 is not pipe.transformer
    for name, value in trunk.transformer.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], value)
        assert torch.equal(pipe.transformer_2.state_dict()[name], value)


def test_a_denoiser_of_one_expert_draws_with_it_on_both_sides(config):
    model = Denoiser(config)
    trunk = TextToVideoPipeline.from_preset("debug", seed=3)
    pipe = model.pipeline(config, trunk.tokenizer, trunk.vae)
    assert pipe.transformer is pipe.transformer_2 is model.transformer
