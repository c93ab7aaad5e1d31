import json

import numpy as np
import pytest
import torch
from tinywan.checkpoint import SHIPPED
from tinywan.errors import ConfigError
from tinywan.noise_levels import LEVELS, held_out_clips, main, plot_errors, velocity_errors
from tinywan.pipeline import TextToVideoPipeline


@pytest.fixture
def pipe() -> TextToVideoPipeline:
    return TextToVideoPipeline.from_preset("debug", seed=1)


def test_the_error_is_that_of_the_velocity_of_the_same_noisy_clip(pipe):
    clips = held_out_clips(pipe, 2)
    found = velocity_errors({"one": pipe.transformer}, clips, [0.4], progress_bar=False)["one"]
    latents, embeds = clips[1]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        told = pipe.transformer(0.6 * latents + 0.4 * noise, torch.tensor([400.0]), embeds)
    assert found.shape == (1, 2)
    expected = (told - (noise - latents)).square().mean().item()
    assert found[0, 1] == pytest.approx(expected, rel=1e-4)


def test_clips_are_held_out_and_of_both_languages(pipe, monkeypatch):
    told = []
    encode = TextToVideoPipeline.encode_prompt
    monkeypatch.setattr(
        TextToVideoPipeline, "encode_prompt", lambda self, p: told.extend(p) or encode(self, p)
    )
    clips = held_out_clips(pipe, 4)
    assert [latents.shape for latents, _ in clips] == [(1, 16, 3, 4, 4)] * 4
    assert [text.isascii() for text in told] == [True, False, True, False]


def test_no_clips_get_a_sentence(pipe):
    with pytest.raises(ConfigError, match="0 clips tell nothing"):
        held_out_clips(pipe, 0)


def test_the_figure_shows_each_denoiser_as_a_share_of_the_first():
    errors = {"trunk": np.full((2, 3), 2.0), "high-noise expert": np.full((2, 3), 1.0)}
    (axes,) = plot_errors(errors, (0.2, 0.9), 0.875).axes
    curves = {line.get_label(): line.get_ydata() for line in axes.get_lines()[:2]}
    assert list(curves["trunk"]) == [1, 1]
    assert list(curves["high-noise expert"]) == [0.5, 0.5]


def test_the_command_writes_figures_and_numbers(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "experts")
    pipe.transformer_2 = pipe.transformer
    pipe.save_pretrained(tmp_path / "trunk")
    options = ["--checkpoint", str(tmp_path / "experts"), "--trunk", str(tmp_path / "trunk")]
    assert main([*options, "--clips", "1", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out/noise_levels.json").read_text())
    assert list(told["errors"]) == ["trunk", "high-noise expert", "low-noise expert"]
    assert all(len(values) == len(LEVELS) for values in told["errors"].values())
    assert (tmp_path / "out/noise_levels.png").read_bytes().startswith(b"\x89PNG")
    assert "low-noise expert" in capsys.readouterr().out


def test_the_trunk_is_asked_with_the_words_of_its_own_text_encoder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "experts")
    trunk = TextToVideoPipeline.from_preset("debug", seed=11)
    trunk.vae = pipe.vae
    trunk.save_pretrained(tmp_path / "trunk")
    options = ["--checkpoint", str(tmp_path / "experts"), "--trunk", str(tmp_path / "trunk")]
    assert main([*options, "--clips", "1", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "noise_levels.json").read_text())
    stored = TextToVideoPipeline.from_pretrained(tmp_path / "trunk")
    own = velocity_errors({"trunk": stored.transformer}, held_out_clips(stored, 1))
    assert told["errors"]["trunk"] == pytest.approx(own["trunk"].mean(1).tolist(), rel=1e-6)


def test_a_trunk_with_other_latents_is_refused(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "experts")
    TextToVideoPipeline.from_preset("debug", seed=11).save_pretrained(tmp_path / "trunk")
    options = ["--checkpoint", str(tmp_path / "experts"), "--trunk", str(tmp_path / "trunk")]
    assert main([*options, "--clips", "1", "--out", str(tmp_path)]) == 2
    assert "has other latents" in capsys.readouterr().err


def test_the_command_refuses_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert main(["--checkpoint", "nowhere", "--out", str(tmp_path)]) == 2
    assert "there is no checkpoint in nowhere" in capsys.readouterr().err
    assert SHIPPED.exists()
