from dataclasses import replace

import pytest
import torch
from tinywan.dit import Block, DiT, DiTConfig, Modulation, sinusoids
from tinywan.errors import ConfigError
from tinywan.norms import LayerNorm
from torch import Tensor, nn

LATENTS = (2, 4, 3, 4, 6)  # b c f h w
TOKENS = 3 * 4 * 6
PROMPT, TEXT_DIM = 9, 10
EXACT = 1e-6
SMALL = {
    "dim": 24,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_dim": 48,
    "in_channels": 4,
    "text_dim": TEXT_DIM,
    "text_len": PROMPT,
    "freq_dim": 16,
    "spatial_head_dim": 8,
    "temporal_head_dim": 6,
    "spatial_windows": (1, None),
    "temporal_windows": (1, None),
    "num_experts": 5,
    "top_k": 2,
    "expert_dim": 16,
}
CONFIGS = {
    "factorised": DiTConfig(**SMALL),
    "full": DiTConfig(**{**SMALL, "attention": "full"}),
    "dense": DiTConfig(**{**SMALL, "num_experts": 0}),
    "wan": DiTConfig(**{**SMALL, "attention": "full", "num_experts": 0, "patch_size": (1, 2, 2)}),
}
PER_ATTENTION = ("q", "k", "v", "out")


def speaking(config: DiTConfig) -> DiT:
    """A denoiser whose output is not silent, as after training."""
    model = DiT(config).eval()
    nn.init.normal_(model.proj_out.weight)
    return model


def unturned(head_dim: int) -> Tensor:
    """Rotary positions that leave everything as it is."""
    half = head_dim // 2
    return torch.stack([torch.ones(TOKENS, half), torch.zeros(TOKENS, half)])


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(LATENTS), torch.tensor([900.0, 100.0]), torch.randn(2, PROMPT, TEXT_DIM)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_velocity_has_the_shape_of_the_latents(name, inputs):
    assert speaking(CONFIGS[name])(*inputs).shape == LATENTS


@pytest.mark.parametrize("name", CONFIGS)
def test_before_training_it_is_silent(name, inputs):
    assert torch.equal(DiT(CONFIGS[name])(*inputs), torch.zeros(LATENTS))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_hears_the_latents_the_time_and_the_prompt(name, inputs):
    model = speaking(CONFIGS[name])
    plain = model(*inputs)
    for i in range(3):
        changed = list(inputs)
        changed[i] = inputs[i] + 1
        assert (model(*changed) - plain).abs().max() > 1e-3


def test_clips_of_a_batch_do_not_mix(inputs):
    model = speaking(CONFIGS["factorised"])
    alone = model(*(value[1:] for value in inputs))
    torch.testing.assert_close(model(*inputs)[1:], alone, atol=10 * EXACT, rtol=0)


@pytest.mark.parametrize(
    ("name", "looks", "thinks"),
    [
        ("factorised", ("spatial_attn", "temporal_attn"), ("moe",)),
        ("full", ("self_attn",), ("moe",)),
        ("wan", ("self_attn",), ("ffn",)),
    ],
)
def test_the_taps_have_the_agreed_names_and_shapes(name, looks, thinks, inputs):
    model, seen = speaking(CONFIGS[name]), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Identity):
            module.register_forward_hook(
                lambda module, args, output, path=path: seen.update({path: output})
            )
    model(*inputs)
    tokens = TOKENS // 4 if name == "wan" else TOKENS
    expected = {"time_embed": (2, 24), "middle": (2, tokens, 24)}
    for i in range(2):
        at = f"blocks.{i}."
        widths = {"spatial_attn": 8, "temporal_attn": 6, "self_attn": 12}
        for kind in looks:
            for tap in "qkv":
                expected[f"{at}{kind}.{tap}"] = (2, 2, tokens, widths[kind])
        expected[f"{at}cross_attn.q"] = (2, 2, tokens, 12)
        expected[f"{at}cross_attn.k"] = expected[f"{at}cross_attn.v"] = (2, 2, PROMPT, 12)
        for wide in (
            *(f"{kind}.out" for kind in (*looks, "cross_attn")),
            "resid_pre",
            "resid_post",
        ):
            expected[at + wide] = (2, tokens, 24)
        if thinks == ("moe",):
            expected[f"{at}moe.router_logits"] = (2, tokens, 5)
            expected[f"{at}moe.expert_ids"] = (2, tokens, 2)
            expected[f"{at}moe.out"] = (2, tokens, 24)
        else:
            expected[f"{at}ffn.out"] = (2, tokens, 24)
    inside = {path for path in seen if ".moe.experts." in path}  # each expert's own `out`
    assert {path: tuple(seen[path].shape) for path in seen.keys() - inside} == expected


def test_windows_widen_with_the_layers_as_configured():
    blocks = DiT(CONFIGS["factorised"]).blocks
    assert [block.spatial_attn.window for block in blocks] == [1, None]
    assert [block.temporal_attn.window for block in blocks] == [1, None]


def test_the_residual_stream_runs_through_the_blocks(inputs):
    model, seen = speaking(CONFIGS["factorised"]), {}
    for name in ("blocks.0.resid_post", "blocks.1.resid_pre"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    model(*inputs)
    assert torch.equal(seen["blocks.0.resid_post"], seen["blocks.1.resid_pre"])


@pytest.mark.parametrize("name", ["factorised", "wan"])
def test_with_closed_gates_a_block_adds_what_the_words_say_and_nothing_else(name):
    block = Block(CONFIGS[name], 0).eval()
    nn.init.zeros_(block.scale_shift_table)
    x, prompt = torch.randn(1, TOKENS, 24), torch.randn(1, PROMPT, 24)
    time = torch.zeros(1, 3 * block.num_sublayers, 24)
    expected = x + block.cross_attn(block.norm2(x), block.cross_attn.keys_values(prompt))
    rotary = {look: unturned(CONFIGS[name].self_attention_widths[look]) for look in block.looks}
    found = block(x, block.cross_attn.keys_values(prompt), None, time, rotary, (3, 4, 6))
    torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)


def test_modulation_rows_are_shift_scale_and_gate_of_each_sublayer_in_turn():
    block = Block(CONFIGS["wan"], 0).eval()
    nn.init.zeros_(block.scale_shift_table)
    x, prompt = torch.randn(1, TOKENS, 24), torch.randn(1, PROMPT, 24)
    time = torch.randn(1, 6, 24)
    rotary = unturned(12)
    a, b = time[:, :3].split(1, dim=1), time[:, 3:].split(1, dim=1)
    y = x + a[2] * block.self_attn(block.norm1(x) * (1 + a[1]) + a[0], rotary=rotary)
    y = y + block.cross_attn(block.norm2(y), block.cross_attn.keys_values(prompt))
    y = y + b[2] * block.ffn(block.norm3(y) * (1 + b[1]) + b[0])
    found = block(
        x, block.cross_attn.keys_values(prompt), None, time, {"self_attn": rotary}, (3, 4, 6)
    )
    torch.testing.assert_close(found, y, atol=10 * EXACT, rtol=0)


@pytest.mark.parametrize("rows", [1, 2])
def test_modulation_is_done_in_float32_and_rounded_once(rows):
    shift, scale, gate = torch.randn(3, rows, 1, 8)
    x, answer = torch.randn(2, 2, 5, 8).bfloat16()
    norm = LayerNorm(8, elementwise_affine=False)
    wide = x.float()
    normed = (wide - wide.mean(-1, keepdim=True)) / (
        wide.var(-1, unbiased=False, keepdim=True) + norm.eps
    ).sqrt()
    modulation = Modulation(shift, scale, gate)
    found = modulation.into(norm, x)
    assert found.dtype == torch.bfloat16
    expected = normed * (1 + scale) + shift
    torch.testing.assert_close(found.float(), expected, atol=0.004, rtol=0.004)  # half a bit of 8
    assert torch.equal(modulation.add(x, answer), (wide + gate * answer.float()).bfloat16())


def test_a_hook_on_a_norm_sees_what_goes_into_the_sublayer_in_training_and_in_a_run(inputs):
    model = speaking(CONFIGS["factorised"])
    seen = []
    model.blocks[0].norm1.register_forward_hook(lambda module, args, output: seen.append(output))
    latents, _, embeds = inputs
    model(latents, torch.tensor([700.0, 700.0]), embeds)
    with torch.no_grad():
        model(latents, torch.tensor([700.0]), embeds)
    assert len(seen) == 4  # before looking around and before looking along time, each
    torch.testing.assert_close(seen[0], seen[2], atol=10 * EXACT, rtol=1e-5)


@pytest.mark.parametrize("patch_size", [(1, 2, 2), (3, 1, 2)])
def test_without_blocks_a_place_of_the_latents_reaches_its_own_patch_alone(patch_size):
    model = speaking(DiTConfig(**{**SMALL, "attention": "full", "patch_size": patch_size}))
    model.blocks = nn.ModuleList()
    latents = torch.randn(1, *LATENTS[1:])
    moved = latents.clone()
    moved[0, 1, 2, 1, 2] += 1
    time, prompt = torch.tensor([500.0]), torch.randn(1, PROMPT, TEXT_DIM)
    changed = (model(moved, time, prompt) - model(latents, time, prompt))[0].abs().sum(0) > EXACT
    expected = torch.zeros(3, 4, 6, dtype=torch.bool)
    pf, ph, pw = patch_size
    f, h, w = 2 // pf * pf, 1 // ph * ph, 2 // pw * pw
    expected[f : f + pf, h : h + ph, w : w + pw] = True
    assert torch.equal(changed, expected)


def test_a_patch_is_read_channels_first_and_written_channels_last_as_in_wan():
    model, read = DiT(DiTConfig(**{**SMALL, "attention": "full", "patch_size": (3, 2, 2)})), []
    model.blocks = nn.ModuleList()
    model.patch_embedding.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model.proj_out.bias.data = torch.arange(48.0)
    latents = torch.randn(1, 4, 3, 2, 2)  # one patch
    written = model(latents, torch.tensor([500.0]), torch.randn(1, PROMPT, TEXT_DIM))
    assert torch.equal(read[0], latents.flatten()[None, None])
    assert torch.equal(written[0].permute(1, 2, 3, 0).flatten(), torch.arange(48.0))


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_left_out_where_it_is_masked_and_counts_where_it_is_not(masked, inputs):
    model = speaking(DiTConfig(**{**SMALL, "mask_padding": masked}))
    latents, time, prompt = inputs
    padded = torch.cat([prompt, torch.zeros(2, 40, TEXT_DIM)], dim=1)
    change = (model(latents, time, padded) - model(latents, time, prompt)).abs().max()
    assert change < 10 * EXACT if masked else change > 1e-3


def test_each_prompt_of_a_batch_has_its_own_padding(inputs):
    model = speaking(DiTConfig(**{**SMALL, "mask_padding": True}))
    latents, time, prompt = inputs
    prompt[0, 3:] = 0
    alone = [model(latents[:1], time[:1], prompt[:1, :3]), model(latents[1:], time[1:], prompt[1:])]
    torch.testing.assert_close(
        model(latents, time, prompt), torch.cat(alone), atol=10 * EXACT, rtol=0
    )


def test_bfloat16_runs_and_stays_near_float32(inputs):
    model = speaking(CONFIGS["wan"])
    exact = model(*inputs)
    latents, time, prompt = inputs
    rounded = model.bfloat16()(latents.bfloat16(), time, prompt.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("masked", [True, False])
def test_a_prompt_that_was_read_before_draws_the_same_bits(masked, inputs):
    model = speaking(DiTConfig(**{**SMALL, "mask_padding": masked}))
    latents, timestep, embeds = inputs
    embeds[1, 4:] = 0
    context = model.read(embeds)
    assert torch.equal(model(latents, timestep, context), model(latents, timestep, embeds))
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = model(latents[one], timestep[one], context.rows(one))
        torch.testing.assert_close(alone, model(*inputs)[one], atol=10 * EXACT, rtol=0)


def test_a_text_router_sees_what_a_token_read_and_a_plain_one_does_not(inputs):
    for router, moved in (("plain", False), ("text", True)):
        model = speaking(DiTConfig(**{**SMALL, "router": router}))
        block = model.blocks[0]
        seen = []
        block.moe.router_logits.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        x, read = torch.randn(2, 1, TOKENS, 24)
        block.moe(x, read)
        block.moe(x, -read)
        assert bool((seen[0] - seen[1]).abs().max() > 1e-3) is moved, router


def test_the_router_of_a_block_is_told_what_its_cross_attention_read(inputs):
    model, told, read = speaking(DiTConfig(**{**SMALL, "router": "text"})), [], []
    block = model.blocks[1]
    block.cross_attn.out.register_forward_hook(lambda module, args, out: read.append(out))
    block.moe.register_forward_pre_hook(lambda module, args: told.append(args[1]))
    model(*inputs)
    assert torch.equal(told[0], read[0])


def test_sinusoids_are_cosines_first():
    found = sinusoids(torch.tensor([0.0, 250.0]), 8)
    assert found[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = 250 * 1e4 ** -(torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat([angles.cos(), angles.sin()]).float()
    torch.testing.assert_close(found[1], expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 5, 3, 4, 6), r"latents are shaped \(1, 5, 3, 4, 6\); this denoiser takes \[b, 4, f"),
        ((4, 3, 4, 6), r"latents are shaped \(4, 3, 4, 6\)"),
        ((1, 4, 3, 5, 6), r"cannot be cut into patches of \(1, 2, 2\): use multiples"),
    ],
)
def test_latents_that_do_not_fit_get_a_sentence(shape, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DiT(CONFIGS["wan"]).grid(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"num_heads": 0}, "num_heads=0 must be at least 1"),
        ({"condition_channels": -1}, "condition_channels=-1 must be at least 0"),
        (
            {"spatial_windows": (-1, None)},
            "spatial_windows names -1: use a radius of 0 tokens or more, or None for all of them",
        ),
        ({"temporal_windows": (1, -2)}, "temporal_windows names -2"),
        ({"dim": 25}, "dim=25 cannot be split into num_heads=2 heads of even width: use a mult"),
        ({"dim": 26}, "dim=26 cannot be split into num_heads=2 heads of even width"),
        ({"attention": "sparse"}, "attention='sparse': use 'factorised' or 'full'"),
        ({"spatial_windows": (1,)}, "spatial_windows names 1 layers and num_layers is 2: give one"),
        ({"temporal_windows": (1, 2, 3)}, "temporal_windows names 3 layers and num_layers is 2"),
        ({"top_k": 0}, r"top_k=0 of num_experts=5: use 1\.\.5"),
        ({"top_k": 6}, r"top_k=6 of num_experts=5: use 1\.\.5"),
    ],
)
def test_a_configuration_that_cannot_be_gets_a_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DiTConfig(**{**SMALL, **options})


@pytest.mark.parametrize(("reads", "given"), [(0, 6), (6, 5)])
def test_keyframes_that_would_not_be_read_get_a_sentence(reads, given, inputs):
    model = speaking(replace(CONFIGS["factorised"], condition_channels=reads))
    condition = torch.zeros(2, given, *LATENTS[2:])
    sentence = f"condition has {given} channels, and this denoiser reads {reads}: "
    with pytest.raises(ConfigError, match=sentence):
        model(*inputs, condition)


@pytest.mark.parametrize("absolute", [True, False])
def test_in_even_noise_only_absolute_positions_tell_places_and_frames_apart(absolute):
    model = speaking(replace(CONFIGS["factorised"], absolute_positions=absolute))
    if absolute:
        nn.init.normal_(model.position_embedding.weight)
    even = torch.full((1, 4, 3, 4, 4), 0.3)
    with torch.no_grad():
        velocity = model(even, torch.tensor([900.0]), torch.randn(1, PROMPT, TEXT_DIM))
    for axis in (2, 3, 4):
        differs = velocity.diff(dim=axis).abs().amax()
        assert (differs > 1e-3) == absolute
    mirrored = (velocity - velocity.flip(-1)).abs().max()
    assert (mirrored > 1e-3) == absolute  # left is not right


@pytest.mark.parametrize("name", CONFIGS)
def test_one_noise_level_for_a_whole_batch_is_that_level_for_each(name, inputs):
    model = speaking(CONFIGS[name])
    latents, _, embeds = inputs
    with torch.no_grad():
        one = model(latents, torch.tensor([700.0]), embeds)
        each = model(latents, torch.tensor([700.0, 700.0]), embeds)
    torch.testing.assert_close(one, each, atol=10 * EXACT, rtol=1e-5)
