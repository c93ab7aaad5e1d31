"""What the denoiser is given to learn from."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tinywan import batches, theatre, trainer
from tinywan.batches import UNTOLD, Batch, Clips, Phase, told_factors
from tinywan.checkpoint import SHIPPED, fitted
from tinywan.errors import ConfigError
from tinywan.grounding import part_regions
from tinywan.motion import true_motion
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import preset
from tinywan.probes import FACTORS
from tinywan.text import UnigramTokenizer
from tinywan.trainer import check_shareable
from tinywan.vae import CausalVAE

PHASE = Phase(steps=1, num_frames=5, batch=10, micro_batch=10)
SUMS_IN_ANOTHER_ORDER = 1e-4


@pytest.fixture(scope="module")
def vae() -> CausalVAE:
    return TextToVideoPipeline.from_preset("debug", seed=3).vae


def batch_of(vae: CausalVAE, **options: object) -> Batch:
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    config = fitted(preset("debug"), tokenizer)
    return Clips(config, tokenizer, vae, drop_prompt=0.0, **options).batch(7, PHASE)  # type: ignore[arg-type]


def clip(number: int) -> tuple[theatre.Scene, theatre.Clip]:
    """Of the same batch, drawn again."""
    rng = np.random.default_rng([0, 2, 7, number])
    scene = theatre.sample_scene(rng)
    return scene, theatre.render(scene, 5, 32, 32)


def test_latents_are_those_of_each_clip_alone(vae):
    found = batch_of(vae)
    for number in (0, 7, 8, 9):  # on both sides of what is encoded together
        video = torch.from_numpy(clip(number)[1].frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        alone = vae.encode(video)[0]
        torch.testing.assert_close(found.latents[number], alone, atol=SUMS_IN_ANOTHER_ORDER, rtol=0)
    assert not found.latents.requires_grad


def test_half_precision_gives_nearly_the_same_latents(vae):
    exact, rounded = batch_of(vae).latents, batch_of(vae, bfloat16=True).latents
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_pixels_near_what_falls_tell_nothing_of_motion(vae):
    """A guess cannot know where drops are, and to keep it steady would teach to leave them out."""
    motion = batch_of(vae, motion=True).motion
    assert motion is not None
    weathers = set()
    for number, visible in enumerate(motion.visible):
        scene, drawn = clip(number)
        weathers.add(scene.weather)
        np.testing.assert_array_equal(motion.flow[number], drawn.flow)
        video = torch.from_numpy(drawn.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        flow = torch.from_numpy(drawn.flow)[None]
        falling = torch.from_numpy(drawn.particles)[None]
        assert torch.equal(visible, true_motion(video, flow, falling, around=3).visible[0])
        everything = true_motion(video, flow).visible[0]
        assert visible.sum() < everything.sum() or scene.weather == "clear"
        assert torch.equal(visible, everything) or scene.weather != "clear"
    assert weathers == {"clear", "rain", "snow"}


def test_focus_is_the_share_that_those_who_act_and_what_they_carry_cover(vae):
    focus = batch_of(vae, focus=True).focus
    assert focus is not None
    assert focus.shape == (10, 1, 2, 4, 4)
    props = 0
    for number in range(10):
        scene, drawn = clip(number)
        costume = drawn.masks["subject"].copy()
        if scene.prop != "none":
            costume |= drawn.masks["prop"]
            props += 1
        cells = torch.from_numpy(costume).float().unflatten(1, (4, 8)).unflatten(3, (4, 8))
        shares = cells.mean((2, 4))  # F h w
        expected = torch.stack([shares[0], shares[1:].mean(0)])
        torch.testing.assert_close(focus[number, 0], expected, atol=1e-6, rtol=0)
    assert 0 < props < 10
    assert batch_of(vae).focus is None


def test_a_shift_of_its_own_shows_more_noise_and_the_same_clips(vae):
    usual, noisier = batch_of(vae), batch_of(vae, shift=9.0)
    assert torch.equal(usual.latents, noisier.latents)
    odds = usual.sigma / (1 - usual.sigma)
    torch.testing.assert_close(noisier.sigma / (1 - noisier.sigma), 3 * odds, atol=0, rtol=1e-3)


def test_rows_of_a_batch_take_all_its_parts(vae):
    batch = batch_of(vae, focus=True, regions=True)
    some = batch.rows(torch.tensor([4, 1]))
    assert len(some) == 2
    for name in ("ids", "latents", "sigma", "focus"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[[4, 1]])


@pytest.fixture
def asked(monkeypatch) -> list[list[tuple[str, object]]]:
    """Which words of each clip are to be read where, as long as batches are made."""
    seen = []

    def spy(mentions, *rest):
        seen.append(list(mentions))
        return part_regions(mentions, *rest)

    monkeypatch.setattr(batches, "part_regions", spy)
    return seen


def test_who_acts_is_asked_to_read_its_name_and_each_of_its_deeds(vae, asked):
    batch_of(vae, regions=True)
    assert len(asked) == 10
    of_subject = [[spans for part, spans in mentions if part == "subject"] for mentions in asked]
    assert {len(found) for found in of_subject} == {2, 3}  # the name, the deed, perhaps the side
    assert all(len(spans) == 1 for found in of_subject for spans in found[1:])


def test_where_it_whirls_up_spray_the_wind_is_to_be_read(vae, asked):
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    config = replace(fitted(preset("debug"), tokenizer), world="whole")
    phase = Phase(steps=1, num_frames=5, batch=30, micro_batch=30)
    clips = Clips(config, tokenizer, vae, drop_prompt=0.0, regions=True)
    told = clips.batch(3, phase).told[:, list(FACTORS).index("wind")]
    blown = [sum(part == "wind" for part, _ in mentions) for mentions in asked]
    windy = (told == FACTORS["wind"].index("windy")).tolist()
    assert sum(windy) > 2
    assert blown == [int(blows) for blows in windy]


@pytest.fixture
def shown(monkeypatch) -> list[theatre.Scene]:
    """The scenes that are rendered."""
    seen: list[theatre.Scene] = []
    render = theatre.render

    def watched(scene: theatre.Scene, *size: int) -> theatre.Clip:
        seen.append(scene)
        return render(scene, *size)

    monkeypatch.setattr(theatre, "render", watched)
    return seen


def different(takes: list[theatre.Scene]) -> set[str]:
    """In what the takes of a scene differ."""
    names = (field.name for field in fields(theatre.Scene))
    return {name for name in names if len({getattr(take, name) for take in takes}) > 1}


@pytest.mark.parametrize("practise", theatre.STAGING)
def test_two_of_three_scenes_are_about_what_is_practised(vae, shown, practise):
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    config = replace(fitted(preset("debug"), tokenizer), world="whole")
    phase = Phase(steps=1, num_frames=5, batch=36, micro_batch=36)
    Clips(config, tokenizer, vae, takes=4, practise=practise).batch(3, phase)
    scenes = [shown[first : first + 4] for first in range(0, 36, 4)]
    usual = {name for takes in scenes[::3] for name in different(takes)}
    about = [different(takes) for number, takes in enumerate(scenes) if number % 3]
    assert {"action", "direction", "camera"} <= usual <= set(theatre.STAGING)
    assert all(found <= {practise} for found in about)
    assert sum(found == {practise} for found in about) >= 4  # four draws are alike now and then
    if practise == "wind":
        assert all(takes[0].weather != "clear" for n, takes in enumerate(scenes) if n % 3)


def test_what_is_practised_is_practised_at_all_noise_levels(vae):
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    config = replace(fitted(preset("debug"), tokenizer), world="whole")
    stage = Clips(config, tokenizer, vae, takes=2, practise="wind", shift=1.0).stage
    phase = Phase(steps=1, num_frames=1, batch=4, micro_batch=4)
    levels = []
    for step in range(40):
        staged = stage.staged(step, phase)
        about = [(step + number) % 3 > 0 for number in staged.scene.tolist()]
        levels += staged.sigma[torch.tensor(about)].tolist()
    lowest, highest = np.quantile(levels, [0.2, 0.8])
    assert lowest < 0.3
    assert highest > 0.7


def test_takes_are_one_scene_under_one_noise_with_other_deeds(vae, shown):
    batch = batch_of(vae, takes=4)  # 4, 4 and 2 clips
    assert len(batch) == len(shown) == 10
    for first in (0, 4, 8):
        scenes = shown[first : first + 4]
        assert len({(s.subject, s.garment_color, s.place, s.seed) for s in scenes}) == 1
        assert len({(s.action, s.direction) for s in scenes}) > 1
        rows = slice(first, first + 4)
        assert torch.equal(batch.noise[rows], batch.noise[first].expand_as(batch.noise[rows]))
        assert len(set(batch.sigma[rows].tolist())) == 1
        assert not torch.equal(batch.latents[first], batch.latents[first + 1])
    assert len({scene.seed for scene in shown}) == len(set(batch.sigma.tolist())) == 3


def test_processes_share_a_batch_by_scenes(vae, monkeypatch):
    whole = batch_of(vae, takes=4)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(batches, "rank_and_world", lambda rank=rank: (rank, 2))
        parts.append(batch_of(vae, takes=4))
    assert [part.scene.tolist() for part in parts] == [[0] * 4 + [2] * 2, [1] * 4]
    for part in parts:
        rows = torch.isin(whole.scene, part.scene)
        assert torch.equal(part.noise, whole.noise[rows])
        assert torch.equal(part.sigma, whole.sigma[rows])
        torch.testing.assert_close(
            part.latents, whole.latents[rows], atol=SUMS_IN_ANOTHER_ORDER, rtol=0
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_gets_the_batch_of_each_step_from_where_it_begins(vae, workers):
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    config = replace(fitted(preset("debug"), tokenizer), world="whole")
    config = replace(config, dit=replace(config.dit, condition_channels=20))
    clips = Clips(config, tokenizer, vae, regions=True, focus=True, motion=True, takes=2)

    def phase_of(step: int) -> Phase:
        return Phase(steps=1, num_frames=9, batch=2 if step < 6 else 4, micro_batch=1)

    found = list(clips.batches(5, 7, phase_of, workers))
    assert [len(batch) for batch in found] == [2, 4]
    for step, batch in zip((5, 6), found, strict=True):
        wanted = clips.batch(step, phase_of(step))
        assert_batches_equal(batch, wanted)


def assert_batches_equal(found: Batch, wanted: Batch) -> None:
    for field in fields(Batch):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(other, torch.Tensor):
            one, other = (one,), (other,)
        assert len(one) == len(other) > 0, field.name
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), field.name


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    check_shareable(10, together=4)  # one process takes whatever there is
    monkeypatch.setattr(trainer, "rank_and_world", lambda: (0, 2))
    check_shareable(16, together=4)
    check_shareable(6)
    with pytest.raises(ConfigError, match=r"12 cannot be shared evenly by 2 processes.* 8"):
        check_shareable(12, together=4)


def test_what_a_caption_tells_is_numbered_by_factor():
    told = told_factors("a woman in a red coat runs to the left, the camera pans right")
    named = dict(zip(FACTORS, told, strict=True))
    assert {name: FACTORS[name][number] for name, number in named.items() if number != UNTOLD} == {
        "subject": "woman",
        "garment": "coat",
        "garment_color": "red",
        "action": "run",
        "direction": "left",
        "camera": "pan right",
    }
    assert set(told_factors("")) == {UNTOLD}


def test_deeds_are_the_tokens_that_tell_of_motion(vae):
    batch = batch_of(vae, regions=True)
    assert batch.deeds is not None
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    directions = 0
    for ids, deeds, told in zip(batch.ids, batch.deeds, batch.told, strict=True):
        spans = [tokenizer.decode(ids[row > 0].tolist()).strip() for row in deeds if row.any()]
        found = dict(zip(FACTORS, told.tolist(), strict=True))
        assert len(spans) == 1 + (found["direction"] != UNTOLD)
        if len(spans) > 1:
            side = FACTORS["direction"][found["direction"]]
            assert side in spans[1] or {"left": "左", "right": "右"}[side] in spans[1]
            directions += 1
    assert directions > 2
    assert batch_of(vae).deeds is None
