import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from tinywan import probes, theatre
from tinywan.errors import CheckpointError, ConfigError
from tinywan.probes import (
    FACTORS,
    FRAMES,
    SHIPPED_PROBES,
    Probe,
    _label,
    accuracy,
    examples,
    load_probe,
    main,
    prepare,
    save_probe,
    train_probe,
)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return train_probe(6, batch=4, progress_bar=False)


def clip(**changes) -> theatre.Clip:
    return theatre.render(theatre.sample_scene(np.random.default_rng(3)), **changes)


def test_every_factor_of_the_theatre_has_a_head_and_every_value_a_place(probe):
    scene = theatre.sample_scene(np.random.default_rng(3))
    assert list(FACTORS) == [name for name in vars(scene) if name != "seed"]
    logits = probe(prepare(clip().frames)[None])
    assert {name: found.shape[1] for name, found in logits.items()} == {
        name: len(values) for name, values in FACTORS.items()
    }


def test_it_says_one_value_of_each_factor(probe):
    found = probe.read(clip().frames)
    assert all(found[name] in values for name, values in FACTORS.items())


def test_bytes_and_floats_and_other_sizes_are_prepared_alike():
    frames = clip().frames
    whole = prepare(frames)
    assert whole.shape == (3, FRAMES, 96, 96)
    torch.testing.assert_close(prepare(frames / 255), whole, atol=1e-5, rtol=0)
    large = np.repeat(np.repeat(frames, 2, axis=1), 2, axis=2)
    assert (prepare(large) - whole).abs().mean() < 0.05


@pytest.mark.parametrize("shape", [(16, 96, 96, 3), (17, 96, 96), (17, 96, 96, 4)])
def test_what_is_no_clip_gets_a_sentence(probe, shape):
    with pytest.raises(ConfigError, match="the probes read clips"):
        probe.read(np.zeros(shape))


def test_examples_are_of_their_split_and_every_second_is_degraded():
    drawn = examples(np.random.default_rng(0), "held_out")
    (clear, scene), (worse, other) = next(drawn), next(drawn)
    assert theatre.is_held_out(scene)
    assert theatre.is_held_out(other)
    assert torch.equal(clear, prepare(theatre.render(scene).frames))
    away = (worse - prepare(theatre.render(other).frames)).abs().mean()
    assert 0.005 < away < 0.3


def test_training_is_the_same_for_a_seed_and_lowers_the_error():
    shown, scenes = zip(*(next(clips) for clips in [examples(np.random.default_rng(9))] * 8))  # noqa: B905
    stacked = torch.stack(shown)

    def error(probe: Probe) -> float:
        labels = torch.tensor([theatre.PLACES.index(scene.place) for scene in scenes])
        return torch.nn.functional.cross_entropy(probe(stacked)["place"], labels).item()

    first, again = (train_probe(12, batch=8, progress_bar=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))  # noqa: B905
    assert error(first) < 0.9 * error(train_probe(1, batch=8, progress_bar=False))


def test_clips_rendered_in_a_process_of_its_own_are_the_same():
    here, apart = (
        train_probe(3, batch=4, progress_bar=False, apart=apart) for apart in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), apart.parameters()))  # noqa: B905


def test_accuracy_is_a_share_for_each_kind_and_factor(probe):
    found = accuracy(probe, 16)
    assert found.keys() == {"rendered", "degraded"}
    assert all(0 <= share <= 1 for shares in found.values() for share in shares.values())
    assert found["rendered"].keys() == FACTORS.keys()


def test_colours_that_a_monochrome_clip_does_not_show_are_not_asked_for():
    scene = theatre.Scene(
        "woman", "qipao", "red", "umbrella", "blue", "park", "rain", "walk", "left", 3,
        look="monochrome",
    )  # fmt: skip
    known = {name for name in FACTORS if _label(Probe(), name, scene) >= 0}
    assert known == FACTORS.keys() - {"garment_color", "prop_color"}


def test_a_saved_probe_reads_the_same(probe, tmp_path):
    save_probe(probe, tmp_path / "probes.safetensors")
    again = load_probe(tmp_path / "probes.safetensors")
    assert again.read(clip().frames) == probe.read(clip().frames)


@pytest.mark.parametrize("content", [None, b"half", b""])
def test_a_probe_that_cannot_be_read_gets_a_sentence(tmp_path, content):
    path = tmp_path / "probes.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"train them with `python -m tinywan\.probes`"):
        load_probe(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"format": "tinywan-probes-0"},
            "format 'tinywan-probes-0'; this tinywan reads 'tinywan-probes-1'",
        ),
        (
            {"factors": json.dumps({**FACTORS, "direction": ["right", "left"]})},
            "other values of direction",
        ),
        ({"factors": json.dumps({"direction": ["left", "right"]})}, "other values of .*wind"),
        ({"factors": "[]"}, "train them with"),
    ],
)
def test_probes_of_another_theatre_are_refused(probe, tmp_path, change, sentence):
    path = tmp_path / "probes.safetensors"
    save_probe(probe, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    path.write_bytes(save(tensors, {**metadata, **change}))
    with pytest.raises(CheckpointError, match=sentence):
        load_probe(path)
    path.write_bytes(save(tensors))
    with pytest.raises(CheckpointError, match=r"train them with `python -m tinywan\.probes`"):
        load_probe(path)


def test_a_probe_whose_file_was_replaced_is_read_again(probe, tmp_path):
    path = tmp_path / "probes.safetensors"
    for made in (probe, Probe()):
        save_probe(made, path)
        wanted = made.state_dict()["heads.wind.bias"].half().float()
        assert torch.equal(load_probe(path).state_dict()["heads.wind.bias"], wanted)


def test_the_command_trains_writes_and_tells_how_good_they_are(tmp_path, capsys):
    path = tmp_path / "p.safetensors"
    assert main(["--steps", "2", "--clips", "2", "--out", str(path)]) == 0
    assert "garment_color" in capsys.readouterr().out
    assert load_probe(path).factors.keys() == FACTORS.keys()


def test_the_command_makes_the_folder_before_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probes, "train_probe", lambda *_, **__: Probe())
    monkeypatch.setattr(probes, "accuracy", lambda probe, clips: accuracy(probe, 1))
    path = tmp_path / "new" / "folder" / "p.safetensors"
    assert main(["--out", str(path)]) == 0
    assert load_probe(path).factors == FACTORS
    monkeypatch.setattr(probes, "train_probe", lambda *_, **__: pytest.fail("too early"))
    (tmp_path / "file").touch()
    for wrong, says in ((tmp_path / "file" / "p", "File exists"), (tmp_path, "name a file")):
        assert main(["--out", str(wrong)]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--steps", "0"], ["--clips", "0"], ["--seed", "-1"]])
def test_the_command_refuses_what_cannot_be_trained(tmp_path, capsys, options):
    assert main([*options, "--out", str(tmp_path / "p.safetensors")]) == 2
    assert "use 1 step and 1 clip, or more" in capsys.readouterr().err


def test_training_can_begin_with_the_weights_of_a_probe(probe):
    name = "heads.wind.weight"
    began = probe.state_dict()[name].clone()
    again = train_probe(1, batch=2, progress_bar=False, start=probe).state_dict()[name]
    moved = (again - began).abs().max()
    assert 0 < moved < 1e-3
    assert (
        train_probe(1, batch=2, progress_bar=False).state_dict()[name] - began
    ).abs().max() > moved
    torch.testing.assert_close(probe.state_dict()[name], began, atol=0, rtol=0)


def test_the_command_goes_on_from_probes_that_exist(tmp_path, capsys):
    arguments = ["--steps", "3", "--clips", "1"]
    missing = ["--start-from", str(tmp_path / "none.safetensors")]
    assert main([*arguments, *missing, "--out", str(tmp_path / "p.safetensors")]) == 2
    assert "cannot read the probes" in capsys.readouterr().err
    name, found = "motion.0.weight", []
    for seed in ("4", "5"):
        path = tmp_path / f"{seed}.safetensors"
        options = ["--seed", seed, "--start-from", str(SHIPPED_PROBES), "--out", str(path)]
        assert main([*arguments, *options]) == 0
        found.append(load_probe(path).state_dict()[name])
    shipped = load_probe().state_dict()[name]
    assert all(0 < (weights - shipped).abs().max() < 5e-3 for weights in found)
    assert not torch.equal(*found)


class Stubborn:
    """Says the first value of every factor, whatever it sees."""

    factors = FACTORS

    def __call__(self, shown: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: torch.eye(len(values))[:1] for name, values in FACTORS.items()}


def test_accuracy_is_the_share_of_clips_that_show_what_the_probe_says(monkeypatch):
    scenes = []
    sample = theatre.sample_scene
    monkeypatch.setattr(
        theatre, "sample_scene", lambda *how: scenes.append(sample(*how)) or scenes[-1]
    )
    found = accuracy(Stubborn(), 12)
    assert len(scenes) == 12
    assert all(theatre.is_held_out(scene) for scene in scenes)
    for kind in ("rendered", "degraded"):
        right = [scene.subject == FACTORS["subject"][0] for scene in scenes]
        assert found[kind]["subject"] == pytest.approx(np.mean(right))
        seen = [scene for scene in scenes if scene.look != "monochrome"]
        right = [scene.garment_color == theatre.COLORS[0] for scene in seen]
        assert found[kind]["garment_color"] == pytest.approx(np.mean(right))


def test_what_a_vae_leaves_of_a_clip_is_what_the_probe_is_shown():
    shown = []

    class Seeing(Stubborn):
        def __call__(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            shown.append(pictures)
            return super().__call__(pictures)

    class Darkening:
        mean = torch.zeros(1)

        def encode(self, video: torch.Tensor) -> torch.Tensor:
            return video

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents - 0.5

    found = accuracy(Seeing(), 2, vae=Darkening())
    assert found.keys() == {"rendered", "degraded", "decoded"}
    rendered, _, decoded = shown[:3]
    bright = rendered > -0.4
    torch.testing.assert_close(decoded[bright], (rendered - 0.5)[bright], atol=0.01, rtol=0)


def test_the_shipped_probes_are_right_on_held_out_clips():
    found = accuracy(load_probe(), 120, seed=2)["rendered"]
    assert {name for name in ("subject", "place", "garment_color") if found[name] < 0.9} == set()
    weak = {name for name, share in found.items() if share < 0.7}
    assert not weak
