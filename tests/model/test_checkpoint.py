import errno
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tinywan.checkpoint import read_config, write_atomically
from tinywan.errors import CheckpointError, ConfigError, TinywanError
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import PRESETS, ModelConfig, preset

FILES = (
    "config.json",
    "tokenizer.json",
    "text_encoder.safetensors",
    "vae.safetensors",
    "transformer.safetensors",
    "transformer_2.safetensors",
)
HALF_PRECISION = 0.05  # float16 weights, after two steps


@pytest.fixture(scope="module")
def pipe() -> TextToVideoPipeline:
    return TextToVideoPipeline.from_preset("debug", seed=5)


@pytest.fixture(scope="module")
def written(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    pipe.save_pretrained(folder, torch.float32)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoint")


def draw(pipe: TextToVideoPipeline) -> torch.Tensor:
    return pipe(
        "a red lantern",
        num_frames=5,
        num_inference_steps=2,
        seed=1,
        output_type="latent",
        progress_bar=False,
    ).frames


def flip(path: Path, byte: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_a_checkpoint_comes_back_bit_for_bit(pipe, written):
    loaded = TextToVideoPipeline.from_pretrained(written)
    assert loaded.config == pipe.config
    assert loaded.transformer_2 is not loaded.transformer
    assert torch.equal(draw(loaded), draw(pipe))


def test_saving_what_was_loaded_writes_the_same_bytes(written, tmp_path):
    TextToVideoPipeline.from_pretrained(written).save_pretrained(tmp_path, torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_half_precision_is_the_default_and_half_as_large(pipe, written, tmp_path):
    pipe.save_pretrained(tmp_path)
    sizes = [(at / "transformer.safetensors").stat().st_size for at in (tmp_path, written)]
    assert sizes[0] < 0.6 * sizes[1]
    torch.testing.assert_close(
        draw(TextToVideoPipeline.from_pretrained(tmp_path)), draw(pipe), atol=HALF_PRECISION, rtol=0
    )


def test_a_denoiser_that_serves_as_both_noise_experts_is_stored_once(pipe, tmp_path):
    shared = TextToVideoPipeline(
        pipe.config,
        pipe.tokenizer,
        pipe.text_encoder,
        pipe.vae,
        pipe.transformer,
        pipe.transformer,
    )
    shared.save_pretrained(tmp_path)
    assert not (tmp_path / "transformer_2.safetensors").exists()
    loaded = TextToVideoPipeline.from_pretrained(tmp_path)
    assert loaded.transformer_2 is loaded.transformer


@pytest.fixture
def shared() -> TextToVideoPipeline:
    """Other weights, and one denoiser for all noise levels."""
    other = TextToVideoPipeline.from_preset("debug", seed=6)
    return TextToVideoPipeline(
        other.config, other.tokenizer, other.text_encoder, other.vae, other.transformer,
        other.transformer,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_saving_over_a_checkpoint_replaces_all_of_it_and_nothing_else(folder, pipe, shared):
    (folder / "README.md").write_text("mine")
    (folder / "mine.safetensors").write_bytes(b"mine")
    (folder / "model").mkdir()
    (folder / "model" / "evaluation.json").write_text("{}")
    shared.save_pretrained(folder, torch.float32)
    assert {path.name for path in folder.iterdir()} == {
        *FILES, "README.md", "mine.safetensors", "model",
    } - {"transformer_2.safetensors"}  # fmt: skip
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "mine.safetensors").read_bytes() == b"mine"
    assert (folder / "model" / "evaluation.json").exists()
    assert torch.equal(draw(TextToVideoPipeline.from_pretrained(folder)), draw(shared))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    pipe.save_pretrained(folder, torch.float32)
    assert torch.equal(draw(TextToVideoPipeline.from_pretrained(folder)), draw(pipe))


def test_saving_over_a_damaged_checkpoint_mends_it(folder, pipe):
    (folder / "config.json").write_bytes(b"half")
    pipe.save_pretrained(folder, torch.float32)
    assert torch.equal(draw(TextToVideoPipeline.from_pretrained(folder)), draw(pipe))


@pytest.mark.parametrize("before", ["nothing", "one noise expert", "two noise experts"])
@pytest.mark.parametrize("after", [True, False])
def test_an_interrupted_save_leaves_what_there_was_and_nothing_else(
    tmp_path, monkeypatch, pipe, shared, before, after
):
    """At every file that is written or moved, before and after it happens."""
    folder = tmp_path / "checkpoint"
    old, new = (pipe, shared) if before == "two noise experts" else (shared, pipe)
    if before != "nothing":
        old.save_pretrained(folder, torch.float32)
        (folder / "README.md").write_text("mine")
    was = contents(folder) if folder.exists() else None
    done, at = 0, 0

    def falling(method):
        def call(self, *how, **more):
            nonlocal done
            done += 1
            if done == at and not after:
                raise KeyboardInterrupt
            found = method(self, *how, **more)
            if done == at:
                raise KeyboardInterrupt
            return found

        return call

    while True:
        done, at = 0, at + 1
        with monkeypatch.context() as patch:
            for name in ("write_bytes", "write_text", "rename", "replace"):
                patch.setattr(Path, name, falling(getattr(Path, name)))
            try:
                new.save_pretrained(folder, torch.float32)
            except KeyboardInterrupt:
                pass
            else:
                break
        if folder.exists() and contents(folder) != was:  # it came after the last move
            loaded = TextToVideoPipeline.from_pretrained(folder)
            assert torch.equal(draw(loaded), draw(new))
            break
        assert [path.name for path in tmp_path.iterdir()] == ([] if was is None else [folder.name])
    assert at >= 5
    assert {p.name for p in tmp_path.iterdir()} == {folder.name}
    assert not any(path.is_dir() for path in folder.iterdir())


def test_loading_draws_nothing_from_the_global_generator(written):
    state = torch.get_rng_state()
    TextToVideoPipeline.from_preset("debug")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TextToVideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_file_is_named(folder, name, left):
    path = folder / name
    path.write_bytes(path.read_bytes().rstrip(b"\n")[:left])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TextToVideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_is_named(folder, name):
    (folder / name).write_bytes(b'{"format": "somebody else"}')
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        TextToVideoPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.999])
def test_a_flipped_bit_is_found(folder, name, where):
    path = folder / name
    flip(path, int(where * path.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged .*: fetch it anew"):
        TextToVideoPipeline.from_pretrained(folder)


def test_a_flipped_bit_of_the_configuration_is_refused_or_harmless(folder, rng):
    path = folder / "config.json"
    whole, (config, sums) = path.read_bytes(), read_config(folder)
    refused = 0
    for byte in rng.choice(len(whole), 300, replace=False):
        flip(path, byte, int(rng.integers(8)))
        try:
            found, found_sums = read_config(folder)
            assert found == config
            # A flip in a checksum or its name makes the file that it guards be refused.
            refused += found_sums != sums
        except TinywanError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 200  # the others fell on white space


def test_a_file_of_another_model_is_refused_though_it_is_whole(folder, tmp_path):
    header = json.loads((folder / "config.json").read_text())
    header["model"]["dit"]["expert_dim"] = 48
    whole = json.dumps(header["model"], sort_keys=True).encode()
    header["sha256"]["model"] = hashlib.sha256(whole).hexdigest()
    (folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors does not fit"):
        TextToVideoPipeline.from_pretrained(folder)


def test_a_folder_without_checkpoint_gets_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*: name a folder that"):
        TextToVideoPipeline.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"format": "tinywan-1"}', b"\xff\xfe\x00"])
def test_a_configuration_of_another_kind_gets_a_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json (has format|is damaged)"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_json(name):
    fields = json.loads(json.dumps(preset(name).to_dict()))
    assert ModelConfig.from_dict(fields) == preset(name)


@pytest.mark.parametrize(
    "change", [{"colour": 1}, {"dit": {"heads": 2}}, {"vae": [1]}, {"text": None}]
)
def test_a_configuration_with_unknown_fields_gets_a_sentence(change):
    with pytest.raises(CheckpointError, match="not the configuration of a tinywan of this version"):
        ModelConfig.from_dict({**preset("debug").to_dict(), **change})


def test_an_unknown_preset_gets_the_names_of_those_that_exist():
    with pytest.raises(ConfigError, match="no preset is called 'huge': use one of tiny, small"):
        TextToVideoPipeline.from_preset("huge")


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    write_bytes = Path.write_bytes

    def disk_full(self: Path, argument: object) -> None:
        if failing == "write_bytes":
            write_bytes(self, b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, failing, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
