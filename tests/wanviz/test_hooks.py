"""Hooks are named, found and, whatever happens, gone."""

import numpy as np
import pytest
import torch

import wanviz
from wanviz.hooks import HookSet
from wanviz.reducers import WordMasses


def fingerprint(pipe):
    """Every hook, attribute and method that a capture could leave behind."""
    parts = ("taps", "transformer", "transformer_2", "text_encoder", "vae", "scheduler")
    found = {"pipe": sorted(vars(pipe))}
    for prefix, root in ((part, getattr(pipe, part)) for part in parts):
        if not isinstance(root, torch.nn.Module):
            found[prefix] = sorted(vars(root))
            continue
        for name, module in root.named_modules():
            found[f"{prefix}.{name}"] = (
                [list(hooks) for key, hooks in vars(module).items() if key.endswith("hooks")],
                sorted(vars(module)),
                type(module),
                module.forward.__func__,
            )
    return found


def raise_in_the_model(pipe, monkeypatch):
    def boom(*args, **kwargs):
        raise RuntimeError("boom")

    monkeypatch.setattr(pipe.transformer_2.blocks[1].cross_attn.to_out, "forward", boom)


def raise_in_the_callback(pipe, monkeypatch):
    return {"callback_on_step_end": lambda *args: 1 / 0}


def raise_in_a_reducer(pipe, monkeypatch):
    def boom(self, event):
        raise RuntimeError("boom")

    monkeypatch.setattr(WordMasses, "consume", boom)


@pytest.mark.parametrize(
    "fault", [None, raise_in_the_model, raise_in_the_callback, raise_in_a_reducer]
)
def test_nothing_is_left_behind_whoever_raises(pipe, generate, fault, monkeypatch):
    expected, before = generate(), fingerprint(pipe)
    with monkeypatch.context() as patch:
        try:
            with wanviz.capture(pipe):
                assert fingerprint(pipe) != before
                generate(**(fault(pipe, patch) or {} if fault else {}))
        except (RuntimeError, ZeroDivisionError):
            assert fault is not None
        else:
            assert fault is None
    assert fingerprint(pipe) == before
    assert np.array_equal(generate(), expected)


def test_two_captures_nest_and_end_in_any_order(pipe, generate):
    import torch._dynamo  # the stance too is shared by both

    before = fingerprint(pipe)
    first, second = wanviz.capture(pipe), wanviz.capture(pipe, keep=[("layer", "head")])
    one, two = first.__enter__(), second.__enter__()
    generate(seed=3)
    first.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert fingerprint(pipe) == before
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert np.array_equal(one.maps["layer", "head"], two.maps["layer", "head"])


def test_a_capture_that_ends_early_leaves_the_other_one_working(pipe, generate):
    first, second = wanviz.capture(pipe), wanviz.capture(pipe)
    first.__enter__()
    trace = second.__enter__()
    with pytest.raises(wanviz.CaptureError, match="no generation"):
        first.__exit__(None, None, None)
    generate()
    second.__exit__(None, None, None)
    assert np.isfinite(trace.maps[()]).all()


def test_a_denoiser_called_without_the_pipeline_is_not_captured(pipe, generate):
    config = pipe.transformer.config
    latents = torch.zeros(1, config.in_channels, 1, 4, 4)
    embeds = torch.zeros(1, config.text_len, config.text_dim)

    def call_it(*args):
        with torch.no_grad():
            pipe.transformer(latents, torch.tensor([500.0]), embeds)

    with wanviz.capture(pipe) as trace:
        call_it()
        generate(callback_on_step_end=call_it)
    with wanviz.capture(pipe) as alone:
        generate()
    assert np.array_equal(trace.maps["layer", "step"], alone.maps["layer", "step"])


def test_hook_names_are_paths_of_modules_that_fire(pipe, generate):
    fired, handles = set(), []
    names = wanviz.hook_names(pipe)
    for name in names:
        tap = pipe.taps[name] if name in pipe.taps else pipe.transformer.get_submodule(name)
        assert isinstance(tap, torch.nn.Identity)
        handles.append(tap.register_forward_hook(lambda m, i, o, name=name: fired.add(name)))
    generate()
    for handle in handles:
        handle.remove()
    assert fired == set(names)
    assert {"latents", "time_embed", "blocks.0.cross_attn.q", "blocks.1.moe.expert_ids"} <= fired


def test_a_hook_set_removes_everything_and_changes_no_output():
    module, seen = torch.nn.Identity(), []
    with pytest.raises(KeyError), HookSet() as hooks:
        hooks.after(module, lambda output: seen.append(output) or "a look is not a replacement")
        hooks.before(module, lambda: seen.append("before"))
        assert module(3) == 3
        raise KeyError
    assert seen == ["before", 3]
    assert len(hooks) == 0
    module(4)
    assert seen == ["before", 3]


class Stuck:
    """A hook that cannot be taken away."""

    def __init__(self, error):
        self.error = error

    def remove(self):
        raise self.error


def stuck(hooks):
    """A hook set with two that cannot be removed, and a module with the hooks around them."""
    module = torch.nn.Identity()
    hooks.after(module, lambda output: None)
    hooks._handles += [Stuck(OSError("second")), Stuck(OSError("first"))]  # the last one goes first
    hooks.after(module, lambda output: None)
    return module


def test_a_hook_that_cannot_be_removed_keeps_no_other_in_place():
    with pytest.raises(OSError, match="first"), HookSet() as hooks:
        module = stuck(hooks)
    assert not module._forward_hooks
    assert len(hooks) == 0


def test_a_hook_that_cannot_be_removed_does_not_hide_what_was_raised():
    with pytest.raises(KeyError, match="mine") as raised, HookSet() as hooks:
        module = stuck(hooks)
        raise KeyError("mine")
    assert not module._forward_hooks
    assert "first" in raised.value.__notes__[0]
