"""The denoiser's loss, and the two noise experts that grow from one."""

from dataclasses import replace

import pytest
import torch
from tinywan import flow, theatre
from tinywan.batches import UNTOLD, Batch, Clips, Phase
from tinywan.checkpoint import SHIPPED, fitted
from tinywan.dit import DiTConfig
from tinywan.errors import ConfigError
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import preset
from tinywan.probes import FACTORS
from tinywan.text import UnigramTokenizer
from tinywan.train import find_config, parse_arguments
from tinywan.train_denoiser import (
    DEAF,
    SHARP,
    Denoiser,
    DenoiserRecipe,
    apart,
    compile_blocks,
    denoiser_loss,
    is_hidden_matrix,
    mistaken,
    train_denoiser,
)
from tinywan.trainer import TrainerConfig
from tinywan.vae import CausalVAE
from torch import nn

LATENTS = (4, preset("debug").dit.in_channels, 2, 3, 3)  # b c f h w
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


def batch_of(sigma: list[float]) -> Batch:
    ids = torch.randint(3, 200, (len(sigma), 7))
    latents, noise = torch.randn(2, len(sigma), *LATENTS[1:])
    mask = torch.ones_like(ids, dtype=torch.bool)
    scene = torch.arange(len(sigma)) // 2
    told = torch.full((len(sigma), len(FACTORS)), UNTOLD)
    return Batch(ids, mask, latents, noise, torch.tensor(sigma), scene, told)


def test_the_loss_is_the_squared_error_of_the_velocity_and_the_routers_share(config):
    model = speaking(config).train()
    batch = batch_of([0.2, 0.5, 0.7, 0.95])
    loss, parts = denoiser_loss(model, batch, RECIPE)
    share = batch.sigma[:, None, None, None, None]
    noisy = (1 - share) * batch.latents + share * batch.noise
    embeds = model.text_encoder(batch.ids, batch.mask)
    predicted = model.transformer(noisy, 1000 * batch.sigma, embeds)
    error = (predicted - (batch.noise - batch.latents)).square().mean().item()
    assert parts["velocity"] == pytest.approx(error, rel=1e-5)
    whole = error + RECIPE.balance * parts["balance"] + RECIPE.z * parts["z"]
    assert loss.item() == pytest.approx(whole, rel=1e-5)


def test_focus_counts_the_costume_more_the_less_noise_there_is(config):
    model = speaking(config).train()
    batch = batch_of([0.2, 0.5, 0.7, 0.95])
    costume = torch.zeros(4, 1, *LATENTS[2:])
    costume[:, :, 0, 1, 2], costume[2] = 1, 0.5
    batch = replace(batch, focus=costume)
    recipe = replace(RECIPE, balance=0.0, z=0.0)
    plain = denoiser_loss(model, batch, recipe)[0]
    share = batch.sigma[:, None, None, None, None]
    embeds = model.text_encoder(batch.ids, batch.mask)
    noisy = (1 - share) * batch.latents + share * batch.noise
    predicted = model.transformer(noisy, 1000 * batch.sigma, embeds)
    square = (predicted - (batch.noise - batch.latents)).square().mean(1, keepdim=True)
    for focus in (2.0, 5.0):
        found, parts = denoiser_loss(model, batch, replace(recipe, focus=focus))
        weight = 1 + focus * (1 - share) * costume
        every = (1, 2, 3, 4)  # a clip is as much as another, however large its costume
        expected = ((weight * square).sum(every) / weight.sum(every)).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert parts["velocity"] == pytest.approx(plain.item(), rel=1e-5)
        assert found.item() != pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize(("sigma", "learns"), [(0.95, "transformer"), (0.5, "transformer_2")])
def test_each_noise_expert_learns_on_its_side_alone(config, sigma, learns):
    model = speaking(config, two_experts=True).train()
    denoiser_loss(model, batch_of([sigma] * 2), RECIPE)[0].backward()
    for name in ("transformer", "transformer_2"):
        touched = any(p.grad is not None for p in getattr(model, name).parameters())
        assert touched is (name == learns)


@pytest.mark.parametrize(("only", "other"), [("high", "transformer_2"), ("low", "transformer")])
def test_one_noise_expert_can_learn_alone_on_its_own_noise_levels(
    tmp_path, monkeypatch, only, other
):
    start = TextToVideoPipeline.from_preset("debug", seed=3)
    levels = []
    sample = flow.sample_sigma
    monkeypatch.setattr(
        flow, "sample_sigma", lambda *how: levels.append(sample(*how)) or levels[-1]
    )
    recipe = DenoiserRecipe(
        TrainerConfig(steps=3, warmup=1),
        (Phase(3, 1, 2, 2),),
        two_experts=True,
        only=only,
        shift=1.0,
    )
    found = train_denoiser(tmp_path, recipe, start.config, start.vae, start=start)
    for name in ("transformer", "transformer_2"):
        before, after = (getattr(pipe, name).state_dict() for pipe in (start, found))
        same = all(torch.equal(after[key], value) for key, value in before.items())
        assert same == (name == other)
    told = found.text_encoder.state_dict()
    assert all(
        torch.equal(told[key], value) for key, value in start.text_encoder.state_dict().items()
    )
    high = torch.cat(levels) >= start.config.boundary_ratio
    assert (high if only == "high" else ~high).all()


def test_one_denoiser_for_all_noise_levels_has_no_side_to_be_trained_alone(config):
    with pytest.raises(ConfigError, match="neither side can be trained alone"):
        Denoiser(config).teach_only("low")


def test_what_differs_between_takes_is_the_distance_from_their_mean():
    error = torch.randn(5, 2, 3)
    found = apart(error, torch.tensor([7, 7, 2, 7, 4]))
    mean = error[[0, 1, 3]].mean(0)
    for row in (0, 1, 3):
        torch.testing.assert_close(found[row], (error[row] - mean).square(), atol=1e-6, rtol=0)
    assert found[[2, 4]].abs().max() < 1e-6


def test_contrast_counts_near_pure_noise_alone(config):
    model = speaking(config).train()
    recipe = replace(RECIPE, contrast=3.0)
    clear = batch_of([0.2, 0.2, 0.5, 0.5])
    assert denoiser_loss(model, clear, recipe)[0] == denoiser_loss(model, clear, RECIPE)[0]
    both = batch_of([0.2, 0.2, 0.95, 0.95])
    loss, parts = denoiser_loss(model, both, recipe)
    assert parts["contrast"] > 0
    more = loss - denoiser_loss(model, both, RECIPE)[0]
    assert more.item() == pytest.approx(3.0 * parts["contrast"] / 2, rel=1e-4)


def test_what_is_practised_is_contrasted_at_every_noise_level(config):
    model = speaking(config).train()
    batch = batch_of([0.2, 0.2, 0.95, 0.95])
    recipe = replace(RECIPE, contrast=3.0, practise="wind")
    loss, parts = denoiser_loss(model, batch, recipe)
    more = loss - denoiser_loss(model, batch, RECIPE)[0]
    assert more.item() == pytest.approx(3.0 * parts["contrast"], rel=1e-4)
    clear = batch_of([0.2, 0.2, 0.5, 0.5])
    assert denoiser_loss(model, clear, recipe)[1]["contrast"] > 0


def test_a_token_is_told_by_the_angle_of_its_embedding():
    table = torch.eye(5)
    ids, mask = torch.tensor([[2, 4, 0]]), torch.tensor([[True, True, False]])
    own = 3.0 * table[ids]  # as far from the others as can be, however long
    surest = torch.log(1 + 4 * torch.exp(torch.tensor(-SHARP)))
    torch.testing.assert_close(mistaken(own, ids, mask, table), surest, atol=1e-6, rtol=1e-3)
    alike = torch.ones(1, 3, 5)
    found = mistaken(alike, ids, mask, table)
    assert found.item() == pytest.approx(torch.log(torch.tensor(5.0)).item(), rel=1e-5)


def test_identity_is_added_by_its_weight(config):
    model, batch = speaking(config).train(), batch_of([0.2, 0.9])
    plain, _ = denoiser_loss(model, batch, RECIPE)
    loss, parts = denoiser_loss(model, batch, replace(RECIPE, identity=2.0))
    assert (loss - plain).item() == pytest.approx(2 * parts["identity"], rel=1e-4)


@pytest.mark.parametrize("two_experts", [False, True])
def test_recall_asks_the_middle_near_pure_noise_for_what_was_told(config, two_experts):
    model = speaking(config, two_experts).train()
    recipe = replace(RECIPE, recall=0.5)
    batch = batch_of([0.2, 0.95, 0.9, 0.3])
    batch.told[:, 0] = torch.tensor([3, 1, 2, UNTOLD])
    middles: list[torch.Tensor] = []
    with model.transformer.middle.register_forward_hook(lambda m, i, x: middles.append(x)):
        loss, parts = denoiser_loss(model, batch, recipe)
    near = middles[0] if two_experts else middles[0][1:3]
    seen = nn.functional.layer_norm(near, near.shape[-1:]).mean(1)
    logits = model.recall["subject"](seen)
    expected = nn.functional.cross_entropy(logits, torch.tensor([1, 2]))
    assert parts["recall"] == pytest.approx(expected.item(), rel=1e-5)
    more = loss - denoiser_loss(model, batch, RECIPE)[0]
    assert more.item() == pytest.approx(0.5 * parts["recall"] / 2, rel=1e-3)
    assert not model.transformer.middle._forward_hooks


def test_recall_of_captions_that_tell_nothing_is_nothing(config):
    model = speaking(config).train()
    _, parts = denoiser_loss(model, batch_of([0.95, 0.9]), replace(RECIPE, recall=1.0))
    assert parts["recall"] == 0


def test_both_noise_experts_teach_the_one_text_encoder(config):
    told = []
    for sigmas in ([0.9] * 2, [0.2] * 2):
        model = speaking(config, two_experts=True).train()
        denoiser_loss(model, batch_of(sigmas), RECIPE)[0].backward()
        told.append(model.text_encoder.embed.weight.grad)
    assert all(gradient is not None and gradient.any() for gradient in told)
    assert not torch.equal(*told)


def test_a_noise_expert_that_is_not_asked_does_not_count_its_last_answer(config):
    model = speaking(config, two_experts=True).train()
    denoiser_loss(model, batch_of([0.95] * 2), RECIPE)[0].backward()
    denoiser_loss(model, batch_of([0.5] * 2), RECIPE)[0].backward()
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


def test_half_precision_stays_near_the_whole_one(config):
    model, batch = speaking(config).train(), batch_of([0.2, 0.9])
    exact, rounded = (
        denoiser_loss(model, batch, replace(RECIPE, bfloat16=half))[0] for half in (False, True)
    )
    assert rounded.dtype == torch.float32
    assert exact.item() == pytest.approx(rounded.item(), rel=0.05)
    assert exact.item() != rounded.item()


def test_a_batch_in_portions_teaches_what_the_whole_teaches(config):
    pipe = TextToVideoPipeline.from_preset("debug", seed=3)
    clips = Clips(
        config, pipe.tokenizer, pipe.vae, motion=True, regions=True, focus=True, takes=2,
        drop_prompt=0,
    )  # fmt: skip
    batch = clips.batch(0, Phase(steps=1, num_frames=5, batch=6, micro_batch=6))
    batch = replace(batch, sigma=torch.tensor([0.2, 0.2, 0.9, 0.9, 0.95, 0.95]))
    pipe.vae.requires_grad_(False)
    recipe = replace(
        RECIPE,
        contrast=3.0,
        recall=1.0,
        focus=2.0,
        grounding=1.0,
        flow=1.0,
        identity=1.0,
        balance=0,
        z=0,
    )
    model = speaking(config, two_experts=True).train()
    gradients = []
    for size in (6, 2):
        model.zero_grad()
        for part in torch.arange(6).split(size):
            loss, _ = denoiser_loss(model, batch.rows(part), recipe, pipe.vae)
            (loss * len(part) / 6).backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    whole, portions = gradients
    assert (whole - portions).norm() < 1e-4 * whole.norm()


def clips_in_motion(config, count: int) -> tuple[Batch, CausalVAE]:
    pipe = TextToVideoPipeline.from_preset("debug", seed=3)
    clips = Clips(config, pipe.tokenizer, pipe.vae, motion=True)
    return clips.batch(0, Phase(steps=1, num_frames=5, batch=count, micro_batch=1)), pipe.vae


def test_the_flow_loss_is_asked_of_clear_clips_alone_and_moves_the_denoiser(config):
    batch, vae = clips_in_motion(config, 4)
    vae.requires_grad_(False)
    model = speaking(config).train()
    recipe = replace(RECIPE, flow=2.0, flow_sigma=0.5, balance=0, z=0)
    mixed = replace(batch, sigma=torch.tensor([0.1, 0.9, 0.4, 0.8]))
    loss, parts = denoiser_loss(model, mixed, recipe, vae)
    assert loss.item() == pytest.approx(parts["velocity"] + 2.0 * 0.5 * parts["flow"], rel=1e-5)
    clear = mixed.rows(torch.tensor([0, 2]))
    assert denoiser_loss(model, clear, recipe, vae)[1]["flow"] == pytest.approx(
        parts["flow"], rel=1e-4
    )
    noisy = replace(batch, sigma=torch.full((4,), 0.9))
    assert "flow" not in denoiser_loss(model, noisy, recipe, vae)[1]
    gradients = []
    for weight in (0.0, 2.0):
        model.zero_grad()
        denoiser_loss(model, clear, replace(recipe, flow=weight), vae)[0].backward()
        gradients.append(model.transformer.proj_out.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-6


def test_grounding_counts_the_more_the_less_noise_there_is(config):
    pipe = TextToVideoPipeline.from_preset("debug", seed=3)
    clips = Clips(config, pipe.tokenizer, pipe.vae, regions=True, drop_prompt=0)
    batch = clips.batch(0, Phase(steps=1, num_frames=5, batch=2, micro_batch=1))
    model = speaking(config).train()
    recipe = replace(RECIPE, grounding=3.0, balance=0, z=0)
    for level in (0.1, 0.8, 0.95):
        even = replace(batch, sigma=torch.full((2,), level))
        loss, parts = denoiser_loss(model, even, recipe)
        assert 0 < parts["outside"] < 1
        assert 0 < parts["unheard"] < 1
        grounding = (1 - level) * (parts["outside"] + parts["unread"])
        near = level >= config.boundary_ratio  # of debug, 0.875
        expected = parts["velocity"] + 3.0 * (grounding + near * parts["unheard"])
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert model.transformer.blocks[0].cross_attn.norm_q.weight.grad.abs().max() > 0
    assert "outside" not in denoiser_loss(model, batch, RECIPE)[1]
    assert model.transformer.blocks[0].cross_attn.read is None


def test_a_batch_is_made_of_seed_and_step_alone_and_can_be_cut(config):
    first, _ = clips_in_motion(config, 3)
    again, _ = clips_in_motion(config, 3)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.noise, again.noise)
    part = first.rows(torch.tensor([2, 0]))
    assert len(part) == 2
    assert torch.equal(part.latents, first.latents[[2, 0]])
    assert torch.equal(part.motion.flow, first.motion.flow[[2, 0]])
    assert part.condition is None


def test_captions_are_no_longer_than_the_longest_where_padding_is_masked(config):
    batch, _ = clips_in_motion(config, 3)
    assert batch.ids.shape[1] == config.text.text_len  # debug attends to its padding
    masked = replace(config, dit=replace(config.dit, mask_padding=True))
    batch, _ = clips_in_motion(masked, 3)
    assert batch.mask.sum(1).max() == batch.ids.shape[1] < config.text.text_len


def test_a_denoiser_that_learns_of_keyframes_begins_as_the_one_that_knew_none(config):
    trunk = TextToVideoPipeline.from_preset("debug", seed=3)
    model = Denoiser(replace(config, dit=replace(config.dit, condition_channels=20))).eval()
    model.load_pipeline(trunk)
    noisy, embeds = torch.randn(LATENTS), torch.randn(4, 7, config.text.dim)
    sigma, condition = torch.full((4,), 0.5), torch.randn(4, 20, *LATENTS[2:])
    found = model(noisy, sigma, embeds, condition)
    known = trunk.transformer(noisy, sigma * 1000, embeds)
    torch.testing.assert_close(found, known, atol=SUMS_IN_ANOTHER_ORDER, rtol=1e-4)


def test_options_choose_how_the_denoiser_is_built():
    def dit(*words: str) -> DiTConfig:
        return find_config(parse_arguments(words), None).dit

    assert dit() == preset("tiny").dit
    assert dit("--preset", "debug", "--keyframes").condition_channels == 20
    assert dit("--router", "text").router == "text"
    with pytest.raises(ConfigError, match="asks for a plain"):
        seeing = TextToVideoPipeline.from_preset("debug")
        seeing.config = replace(seeing.config, dit=replace(seeing.config.dit, router="text"))
        find_config(parse_arguments(["--router", "plain"]), seeing)
    free = dit("--no-windows")
    assert set(free.spatial_windows) == set(free.temporal_windows) == {None}
    assert len(free.spatial_windows) == free.num_layers


@pytest.mark.parametrize("world", ["first", "whole"])
def test_batches_are_of_the_world_that_the_configuration_names(config, world, monkeypatch):
    asked = []
    sample = theatre.sample_scene
    monkeypatch.setattr(
        theatre,
        "sample_scene",
        lambda rng, **options: asked.append(options) or sample(rng, **options),
    )
    pipe = TextToVideoPipeline.from_preset("debug", seed=3)
    clips = Clips(replace(config, world=world), pipe.tokenizer, pipe.vae)
    clips.batch(0, Phase(steps=1, num_frames=1, batch=2, micro_batch=1))
    assert asked == [{"world": world}] * 2


def test_muon_trains_the_denoisers_blocks_and_nothing_of_the_text_encoder(config):
    model = Denoiser(config, two_experts=True)
    chosen = [n for n, p in model.named_parameters() if p.ndim == 2 and is_hidden_matrix(n)]
    assert {name.split(".")[0] for name in chosen} == {"transformer", "transformer_2"}
    assert any("cross_attn.to_q" in name for name in chosen)
    assert any("experts" in name for name in chosen)
    assert not any("router" in name or "embedding" in name for name in chosen)


def test_compiled_blocks_learn_the_same_and_keep_their_names(config):
    batch = batch_of([0.2, 0.9])
    model = speaking(config).train()
    names, limit = list(model.state_dict()), torch._dynamo.config.recompile_limit
    plain, _ = denoiser_loss(model, batch, RECIPE)
    plain.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = []
    try:
        compile_blocks(model, backend=lambda graph, _: compiled.append(graph) or graph.forward)
        loss, _ = denoiser_loss(model, batch, RECIPE)
        loss.backward()
    finally:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = limit
    assert compiled
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, atol=SUMS_IN_ANOTHER_ORDER, rtol=1e-3
        )
    assert list(model.state_dict()) == names


def test_a_text_router_and_absolute_positions_that_are_added_begin_without_effect(config):
    old = replace(config, dit=replace(config.dit, absolute_positions=False))
    trunk = speaking(old).eval()
    router = replace(config.dit, router="text", absolute_positions=True)
    grown = Denoiser(replace(config, dit=router)).eval()
    grown.load_pipeline(
        trunk.pipeline(old, UnigramTokenizer.from_pretrained(SHIPPED), CausalVAE(old.vae))
    )
    batch = batch_of([0.3, 0.9])
    with torch.no_grad():
        embeds = trunk.text_encoder(batch.ids, batch.mask)
        answers = [m(batch.latents, batch.sigma, embeds) for m in (trunk, grown)]
    assert torch.equal(*answers)
    loss, _ = denoiser_loss(grown.train(), batch, RECIPE)
    loss.backward()
    added = [p for name, p in grown.named_parameters() if name.endswith(DEAF)]
    assert len(added) == 1 + config.dit.num_layers
    assert all(p.grad is not None and p.grad.any() for p in added)
