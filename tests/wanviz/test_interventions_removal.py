"""Interventions leave nothing behind: every one of them, on both models, whatever happens inside."""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import tinywan
from torch import nn

import wanviz
from tests.wanviz import real_wan as real
from wanviz.interventions import (
    compare,
    force_expert,
    force_noise_expert,
    inject,
    record,
    reweight,
    reweight_frames,
    scale_experts,
    scale_heads,
)

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

PROMPT = real.ENGLISH
FRAMES = np.array([[1, 0, 0], [0.5, 1, 2], [0, 3, 1]])


class Model:
    """A pipeline, what a run of it gives, and what its objects look like."""

    def __init__(self, pipe, draw, mask, blocks):
        """Draws first: that leaves notes of its own on a diffusers pipeline."""
        self.pipe, self.draw, self.blocks, self.mask = pipe, draw, blocks, mask
        draw(output_type="np")
        self.plain = draw()
        self.structure = structure(pipe)
        with record(pipe, PROMPT) as self.recording:
            draw(seed=1)

    def check(self):
        """Nothing is left behind."""
        assert structure(self.pipe) == self.structure
        assert np.array_equal(self.draw(), self.plain)


def structure(pipe):
    """Everything that a hook or a patch could leave behind: attributes, hooks, settings."""
    config = pipe.config
    if isinstance(config, Mapping):  # diffusers notes versions in it when a pipeline is printed
        config = {name: value for name, value in config.items() if name[0] != "_"}
    found = {"": (sorted(vars(pipe)), config)}
    for name, part in vars(pipe).items():
        if isinstance(part, nn.Module):
            modules = list(part.named_modules())
        else:
            modules = [("", part)] if name == "video_processor" else []
        for path, module in modules:
            hooks = {
                key: len(value)
                for key, value in vars(module).items()
                if "hook" in key and isinstance(value, dict)
            }
            rest = sorted(key for key in vars(module) if key not in hooks)
            processor = getattr(module, "processor", None)
            found[f"{name}.{path}"] = type(module), hooks, rest, id(processor)
    return found


@pytest.fixture(scope="module")
def tiny():
    pipe = tinywan.TextToVideoPipeline.from_preset("debug")
    size = {name: real.SIZE[name] for name in ("height", "width", "num_frames")}
    size |= {"num_inference_steps": 3, "progress_bar": False, "output_type": "latent"}

    def draw(seed=7, **options):
        return pipe(PROMPT, seed=seed, **{**size, **options}).frames

    return Model(pipe, draw, np.ones((3, 4, 6)), pipe.transformer.blocks)


@pytest.fixture(scope="module")
def wan():
    pipe = real.wan22()

    def draw(seed=7, **options):
        return real.draw(pipe, seed=seed, **{"output_type": "latent", **options})

    return Model(pipe, draw, np.ones((3, 2, 3)), pipe.transformer.blocks)


@pytest.fixture(params=["tiny", "wan"])
def model(request):
    """One of the two: tests share them, since each has to leave them as they were."""
    return request.getfixturevalue(request.param)


# By name: the change, the same with an argument or a word that cannot be, and the error that says so.
CHANGES = {
    "reweight": (
        lambda m: reweight(m.pipe, PROMPT, {"umbrella": 0}),
        lambda m: reweight(m.pipe, PROMPT, {"qipao": 0, "parasol": 0}),
        wanviz.PhraseError,
    ),
    "reweight some heads and places": (
        lambda m: reweight(m.pipe, PROMPT, {"rain": 3}, where=m.mask, heads=[1]),
        lambda m: reweight(m.pipe, PROMPT, {"rain": 3}, where=m.mask[1:]),  # told by the run
        wanviz.OptionError,
    ),
    "scale_heads": (
        lambda m: scale_heads(m.pipe, {(0, 0): 0, (1, 1): 2}),
        lambda m: scale_heads(m.pipe, {(0, 0): 0, (1, 7): 2}),
        wanviz.OptionError,
    ),
    "reweight_frames": (
        lambda m: reweight_frames(m.pipe, FRAMES),
        lambda m: reweight_frames(m.pipe, np.eye(2)),  # told by the run
        wanviz.OptionError,
    ),
    "scale_experts": (
        lambda m: scale_experts(m.pipe, {(0, 2): 0, (1, 2): 0}),
        lambda m: scale_experts(m.pipe, {(0, 2): 0, (1, 99): 0}),
        wanviz.OptionError,
    ),
    "force_expert": (
        lambda m: force_expert(m.pipe, 2, where=m.mask),
        lambda m: force_expert(m.pipe, 2, where=m.mask[1:]),  # told by the run
        wanviz.OptionError,
    ),
    "force_noise_expert": (
        lambda m: force_noise_expert(m.pipe, "low"),
        lambda m: force_noise_expert(m.pipe, "middle"),
        wanviz.OptionError,
    ),
    "record": (
        lambda m: record(m.pipe, PROMPT, "stream"),
        lambda m: record(m.pipe, PROMPT, "stream", budget=1000),  # told by the run
        wanviz.CaptureError,
    ),
    "inject": (
        lambda m: inject(m.pipe, m.recording, PROMPT),
        lambda m: inject(m.pipe, m.recording, "a woman"),
        wanviz.OptionError,
    ),
}
OF_TOKEN_EXPERTS = ("scale_experts", "force_expert")  # Wan has none
EACH = pytest.mark.parametrize(
    ("model", "name"),
    [(model, name) for model in ("tiny", "wan") for name in CHANGES
     if model == "tiny" or name not in OF_TOKEN_EXPERTS],
    indirect=["model"],
)  # fmt: skip


class BrokenError(Exception):
    """What the model raises."""


@contextmanager
def broken(model):
    """The model raises in its second layer, in the third forward."""
    calls, handles = [], []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise BrokenError

    for denoiser in (model.pipe.transformer, model.pipe.transformer_2):
        block = denoiser.blocks[1]
        attention = block.cross_attn if hasattr(block, "cross_attn") else block.attn2
        handles.append(attention.register_forward_hook(fail))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@EACH
def test_a_change_that_ended_is_gone(model, name):
    with CHANGES[name][0](model):
        changed = model.draw()
    assert np.array_equal(changed, model.plain) == (name == "record")
    model.check()


@EACH
def test_a_change_that_cannot_be_leaves_nothing(model, name):
    _, make, error = CHANGES[name]
    with pytest.raises(error), make(model):
        model.draw()
    model.check()


@EACH
def test_a_model_that_raises_is_left_as_it_was(model, name):
    with broken(model), pytest.raises(BrokenError), CHANGES[name][0](model):
        model.draw()
    model.check()


@EACH
def test_a_user_who_interrupts_finds_the_model_as_it_was(model, name):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), CHANGES[name][0](model):
        model.draw(callback_on_step_end=interrupt)
    model.check()


@pytest.mark.parametrize("first_ends_first", [True, False])
@pytest.mark.parametrize("other", ["capture", "reweight", "record", "inject", "force_noise_expert"])
@pytest.mark.parametrize("name", ["reweight", "scale_heads", "reweight_frames", "inject"])
def test_two_nest_and_end_in_any_order(model, name, other, first_ends_first):
    first = CHANGES[name][0](model)
    second = wanviz.capture(model.pipe) if other == "capture" else CHANGES[other][0](model)
    first.__enter__()
    second.__enter__()
    model.draw()
    for context in (first, second) if first_ends_first else (second, first):
        context.__exit__(None, None, None)
    model.check()


def test_the_change_that_remains_still_works(model):
    with CHANGES["scale_heads"][0](model):
        alone = model.draw()
    first, second = CHANGES["reweight"][0](model), CHANGES["scale_heads"][0](model)
    first.__enter__()
    second.__enter__()
    assert not np.array_equal(model.draw(), alone)
    first.__exit__(None, None, None)
    assert np.array_equal(model.draw(), alone)
    second.__exit__(None, None, None)
    model.check()


def test_a_second_forced_noise_expert_is_refused(model):
    with force_noise_expert(model.pipe, "high"):
        with pytest.raises(wanviz.OptionError, match="forced already"):
            force_noise_expert(model.pipe, "low").__enter__()
    model.check()


def test_all_changes_at_once_are_gone_together(model):
    names = [
        name
        for name in CHANGES
        if isinstance(model.pipe, tinywan.TextToVideoPipeline) or name not in OF_TOKEN_EXPERTS
    ]
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        for name in names:
            stack.enter_context(CHANGES[name][0](model))
        assert not np.array_equal(model.draw(), model.plain)
        raise KeyboardInterrupt
    model.check()


def test_a_comparison_whose_second_run_breaks_leaves_nothing(model):
    steps = []

    def interrupt(pipe, step, timestep, kwargs):
        steps.append(step)
        if len(steps) == 5:  # of three each
            raise KeyboardInterrupt
        return kwargs

    size = {k: v for k, v in real.SIZE.items() if k != "output_type"}
    with pytest.raises(KeyboardInterrupt):
        change = CHANGES["reweight"][0](model)
        compare(model.pipe, PROMPT, change, callback_on_step_end=interrupt, **size)
    model.check()
