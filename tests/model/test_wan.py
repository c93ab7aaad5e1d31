"""The denoiser configured as Wan's takes Wan's weights and gives Wan's answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tinywan.errors import CheckpointError, ConfigError, DeviceError
from tinywan.presets import WAN, preset
from tinywan.wan import INDEX, WEIGHTS, load_wan, wan_config, wan_parameters

diffusers = pytest.importorskip("diffusers", reason="the reference is diffusers' own transformer")

SAME = 1e-5  # float32, answers of about 2
BASE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "ffn_dim": 64,
    "num_layers": 2,
}
CONFIGS = {
    "like A14B": {},
    "patches of one latent": {"patch_size": (1, 1, 1), "num_layers": 3},
    "first frame given beside the latents": {"in_channels": 12},
    "other widths": {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 300},
}


def saved(folder: Path, shard: str = "10GB", **changes: object) -> torch.nn.Module:
    """A random Wan transformer of diffusers, written as diffusers writes it."""
    theirs = diffusers.WanTransformer3DModel(**{**BASE, **changes}).eval()
    theirs.save_pretrained(folder, max_shard_size=shard)
    return theirs


def answers(theirs: torch.nn.Module, ours: torch.nn.Module, dtype: torch.dtype = torch.float32):
    """What both say to the same latents, timesteps and prompt."""
    channels = theirs.config.in_channels
    latents = torch.randn(2, channels, 5, 8, 6).to(dtype)
    embeds = torch.randn(2, 12, BASE["text_dim"]).to(dtype)
    timestep = torch.tensor([999.3, 417.2])
    out = theirs.config.out_channels
    given = latents[:, out:] if channels > out else None
    with torch.no_grad():
        expected = theirs(latents, timestep, embeds, return_dict=False)[0]
        return expected, ours(latents[:, :out], timestep, embeds, given)


@pytest.mark.parametrize("name", CONFIGS)
def test_wan_weights_give_the_answer_of_diffusers(name, tmp_path):
    theirs = saved(tmp_path, **CONFIGS[name])
    expected, found = answers(theirs, load_wan(tmp_path, progress_bar=False))
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)


def test_weights_may_lie_in_several_files(tmp_path):
    theirs = saved(tmp_path, shard="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    expected, found = answers(theirs, load_wan(tmp_path, progress_bar=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME)


def test_half_precision_keeps_in_float32_what_diffusers_keeps(tmp_path):
    saved(tmp_path)
    theirs = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    ours = load_wan(tmp_path, dtype=torch.bfloat16, progress_bar=False)
    assert ours.time_embedder[0].weight.dtype == torch.float32
    assert ours.blocks[0].scale_shift_table.dtype == torch.float32
    assert ours.blocks[0].ffn.up.weight.dtype == torch.bfloat16
    expected, found = answers(theirs.eval(), ours, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert (found - expected).float().abs().mean() < 0.004  # bfloat16 steps of answers of about 1


def test_parameters_are_as_many_as_wans():
    assert round(wan_parameters(WAN["wan2.1-t2v-1.3b"]) / 1e9, 3) == 1.419
    assert round(wan_parameters(WAN["wan2.2-t2v-a14b"]) / 1e9, 3) == 14.288


def test_presets_have_the_shapes_of_diffusers():
    for name, heads, layers, ffn in (
        ("wan2.1-t2v-1.3b", 12, 30, 8960),
        ("wan2.2-t2v-a14b", 40, 40, 13824),
    ):
        with torch.device("meta"):
            theirs = diffusers.WanTransformer3DModel(
                num_attention_heads=heads, num_layers=layers, ffn_dim=ffn
            )
        assert wan_config(dict(theirs.config)) == WAN[name]
        assert sum(p.numel() for p in theirs.parameters()) == wan_parameters(WAN[name])


def test_a_wan_preset_says_that_it_is_a_denoiser_alone():
    with pytest.raises(ConfigError, match=r"denoiser alone.*load_wan"):
        preset("wan2.2-t2v-a14b")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_dim": 1280}, "image_dim=1280"),
        ({"added_kv_proj_dim": 48}, "added_kv_proj_dim=48"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"num_layers": None}, "not the configuration of a Wan transformer"),
    ],
)
def test_a_transformer_of_another_kind_is_refused(change, says, tmp_path):
    saved(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=says):
        load_wan(tmp_path, progress_bar=False)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*config\.json"):
        load_wan(tmp_path, progress_bar=False)


def test_missing_foreign_and_misshapen_tensors_are_named(tmp_path):
    saved(tmp_path)
    path = tmp_path / WEIGHTS
    whole = load_file(path)
    for change, says in (
        ({"proj_out.bias": None}, r"lacks 1 of the model's tensors, e\.g\. proj_out\.bias"),
        ({"blocks.7.norm2.weight": torch.ones(48)}, r"blocks\.7\.norm2\.weight.*does not have"),
        ({"proj_out.bias": torch.ones(3)}, r"shaped \(3,\).*asks for \(16,\)"),
    ):
        tensors = {k: v for k, v in (whole | change).items() if v is not None}
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=says):
            load_wan(tmp_path, progress_bar=False)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    saved(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} cannot be read"):
        load_wan(tmp_path, progress_bar=False)
    (tmp_path / INDEX).write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_wan(tmp_path, progress_bar=False)


@pytest.mark.parametrize("device", ["tpu", "cuda:77", ""])
def test_a_device_that_is_not_there_is_refused(device, tmp_path):
    saved(tmp_path)
    with pytest.raises(DeviceError, match=f"this machine has no device '{device}'.*use cpu"):
        load_wan(tmp_path, device=device, progress_bar=False)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "float16"])
def test_weights_are_not_read_as_what_they_are_not(dtype, tmp_path):
    saved(tmp_path)
    with pytest.raises(ConfigError, match=f"dtype={dtype!r}: use torch.float32, "):
        load_wan(tmp_path, dtype=dtype, progress_bar=False)


_LOADS = """
import resource, sys
import torch
from tinywan.wan import load_wan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_wan(sys.argv[1], dtype=torch.bfloat16, progress_bar=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_loading_does_not_hold_the_model_twice(tmp_path):
    theirs = saved(tmp_path, num_attention_heads=32, attention_head_dim=32, ffn_dim=4096)
    weights = 2 * sum(p.numel() for p in theirs.parameters())  # bytes in bfloat16
    largest = 4 * max(p.numel() for p in theirs.parameters())
    found = subprocess.run(
        [sys.executable, "-c", _LOADS, str(tmp_path)], check=True, capture_output=True, text=True
    )
    stored = (
        (tmp_path / WEIGHTS).stat().st_size
    )  # mapped pages count as resident while they are read
    assert weights > 50e6
    assert 1024 * int(found.stdout) < weights + stored + largest
