"""What a reducer asks of the device for each event: nothing that waits for it."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wanviz
from tests.wanviz import real_wan as real
from wanviz.events import Event, Moment
from wanviz.grid import Grid
from wanviz.layout import ArraySpec
from wanviz.reducers import WordMasses
from wanviz.words import encoded_prompt, only_words

GRID = Grid(2, 3, 4)
LAYERS, STEPS, HEADS, PADS = 2, 3, 2, 5
WAITS = (
    "equal",
    "_local_scalar_dense",
    "nonzero",
    "lift_fresh",
)  # the last: an index out of a list


class Waits(TorchDispatchMode):
    """Counts the calls at which a CPU waits for a GPU, or sends it an index."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def reducer():
    """Of two words in three, and of one head in two."""
    prompt = only_words(encoded_prompt("a red dog", ((0, 1), (2, 5), (6, 9)), None), ("a", "dog"))
    shape = (LAYERS, 2 + 3, *GRID.shape)
    spec = ArraySpec("cond/words/layer", ("layer",), shape, "float32")
    labels = {"layer": (0, 1), "step": (0, 1, 2), "head": (1,)}
    return WordMasses("cond", prompt, (spec,), labels)


def event(layer, step, keys):
    q = torch.randn(HEADS, GRID.tokens, 8, generator=torch.Generator().manual_seed(step))
    moment = Moment(step, 0.5, 500.0, "high", ("cond",))
    return Event("cross_attn", layer, moment, "cond", GRID, q=q, k=keys)


def keys_of(layer):
    keys = torch.randn(HEADS, 4 + PADS, 8, generator=torch.Generator().manual_seed(layer))
    keys[:, 4:] = keys[:, 4:5]
    return keys


def test_padding_keys_are_compared_once_in_each_layer_and_an_index_is_sent_once():
    masses = reducer()
    with Waits() as waits:
        for step in range(STEPS):
            for layer in range(LAYERS):
                masses.consume(event(layer, step, keys_of(layer)))
    assert sum(waits.found[name] for name in WAITS[:3]) == LAYERS
    assert waits.found["lift_fresh"] == 0


def test_padding_keys_that_differ_later_are_told_at_the_end():
    pipe, calls = real.wan21(), []

    def disturb(module, inputs, keys):
        calls.append(1)
        keys = keys.clone()
        keys[:, -1] += len(calls) > 2  # both branches of the first step are left alone
        return keys

    handle = pipe.transformer.blocks[1].attn2.norm_k.register_forward_hook(disturb)
    plain = real.draw(pipe)
    calls.clear()
    drawn = []
    with (
        pytest.raises(
            wanviz.CaptureError, match=r"words could not be captured.*from the first step"
        ),
        wanviz.capture(pipe) as trace,
    ):
        drawn.append(real.draw(pipe))
    handle.remove()
    assert np.array_equal(drawn[0], plain)
    assert list(trace.record["failed"]) == ["words"]
    assert trace.frame_attention().mass.notnull().all()


def test_padding_keys_that_differ_at_first_are_computed_one_by_one_to_the_end():
    masses, found = reducer(), []
    for step in range(STEPS):
        keys = keys_of(0)
        if step == 0:
            keys[:, -1] += 1.0
        told = event(0, step, keys)
        masses.consume(told)
        found.append((told.q[1] @ keys[1].T / 8**0.5).softmax(-1)[:, 4:].sum(-1))
    assert not masses.pads_equal
    padding = masses.finish()["cond/words/layer"][0, 3].ravel()
    np.testing.assert_allclose(padding, torch.stack(found).mean(0), atol=1e-6)
