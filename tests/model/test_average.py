"""The mean of checkpoints is the mean of their weights, and nothing else is averaged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tinywan.average import PARTS, average, main
from tinywan.errors import ConfigError
from tinywan.pipeline import TextToVideoPipeline

PRECISION = 1e-6


def debug(seed: int) -> TextToVideoPipeline:
    return TextToVideoPipeline.from_preset("debug", seed=seed)


def test_every_weight_of_the_mean_is_the_mean_of_the_weights() -> None:
    pipes = [debug(seed) for seed in range(3)]
    for name, value in pipes[0].vae.state_dict().items():  # one part is the same in all
        for pipe in pipes:
            pipe.vae.state_dict()[name].copy_(value)
    before = [pipe.transformer.patch_embedding.weight.clone() for pipe in pipes]
    mean = average(pipes)
    for part in PARTS:
        states = [getattr(pipe, part).state_dict() for pipe in pipes]
        for name, value in getattr(mean, part).state_dict().items():
            wanted = sum(state[name] for state in states) / 3
            torch.testing.assert_close(value, wanted, atol=PRECISION, rtol=PRECISION)
    assert all(
        torch.equal(value, pipes[0].vae.state_dict()[name])
        for name, value in mean.vae.state_dict().items()
    )
    for pipe, weight in zip(pipes, before, strict=True):
        assert torch.equal(pipe.transformer.patch_embedding.weight, weight)
    assert not torch.equal(mean.transformer.patch_embedding.weight, before[0])


def test_one_denoiser_stays_one() -> None:
    pipes = [debug(seed) for seed in range(2)]
    for pipe in pipes:
        pipe.transformer_2 = pipe.transformer
    mean = average(pipes)
    assert mean.transformer_2 is mean.transformer
    with pytest.raises(ConfigError, match="checkpoint 2 has other numbers of noise experts"):
        average([pipes[0], debug(5)])


def test_what_is_not_alike_is_refused() -> None:
    other = debug(1)
    other.config = replace(other.config, boundary_ratio=0.5)
    with pytest.raises(ConfigError, match="checkpoint 2 has other sizes or settings"):
        average([debug(0), other])
    with pytest.raises(ConfigError, match="name two or more"):
        average([debug(0)])


def test_the_command_writes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        debug(seed).save_pretrained(tmp_path / str(seed), torch.float32)
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main([*folders, "--out", str(tmp_path / "mean")]) == 0
    assert "wrote" in capsys.readouterr().out
    found = TextToVideoPipeline.from_pretrained(tmp_path / "mean").transformer.proj_out.weight
    wanted = (debug(0).transformer.proj_out.weight + debug(1).transformer.proj_out.weight) / 2
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)  # stored in half precision
    assert main([folders[0], "--out", str(tmp_path / "mean")]) == 2
    assert "name two or more" in capsys.readouterr().err
    assert main([*folders, str(tmp_path / "nowhere"), "--out", str(tmp_path / "mean")]) == 2
    assert "nowhere" in capsys.readouterr().err
