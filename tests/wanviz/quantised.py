"""A Wan pipeline whose weights are int8, by torchao. Collected by test_diffusers_int8.py alone, in a process that has it."""

import numpy as np
import pytest
import torch
from torchao import quantization

import wanviz
from tests.wanviz import real_wan as real
from tests.wanviz.test_attribution_model import PARAMETERS
from tests.wanviz.test_diffusers_features import OPTIONS, each_transformer, masses, usual
from tests.wanviz.test_diffusers_wan import fingerprint
from wanviz.attribution import METHODS
from wanviz.interventions import reweight

__all__ = ["usual"]
KINDS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}
COARSE = 0.005  # int8 moves a mass by no more


def quantised(kind, dtype=torch.float32):
    pipe = each_transformer(real.wan22(), lambda model: model.to(dtype))
    pipe = each_transformer(pipe, lambda model: quantization.quantize_(model, KINDS[kind]()))
    assert type(pipe.transformer.blocks[0].attn2.to_q.weight).__name__ == "Int8Tensor"
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_capture_keeps_bits_structure_and_maps(kind, dtype, usual):
    pipe = quantised(kind, dtype)
    plain, before = real.draw(pipe), fingerprint(pipe)
    with wanviz.capture(pipe, **OPTIONS) as trace:
        watched = real.draw(pipe)
    assert np.array_equal(plain, watched)
    assert fingerprint(pipe) == before
    assert np.array_equal(plain, real.draw(pipe))
    np.testing.assert_allclose(masses(trace).sum(axis=3), 2.0, atol=1e-4)  # of two branches
    np.testing.assert_allclose(masses(trace), usual, atol=COARSE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_works_and_says_nearly_the_same(kind, rng):
    video = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    pipe, plain = quantised(kind), real.wan22()
    blind = () if kind == "weights" else ("saliency", "input_x_gradient", "integrated_gradients")
    for method in METHODS:
        asked = {"method": method, "video": video, "sigmas": (0.5,), "progress_bar": False}
        if method in blind:
            with pytest.raises(wanviz.OptionError, match="no gradient comes back"):
                wanviz.attribute(pipe, real.ENGLISH, ["umbrella"], **asked)
            continue
        found, wanted = (
            wanviz.attribute(one, real.ENGLISH, ["umbrella"], **asked, **PARAMETERS.get(method, {}))
            for one in (pipe, plain)
        )
        assert np.isfinite(found.values).all(), method
        if method in ("attention", "attention_layers", "attention_value", "output_space"):
            near = np.corrcoef(found.values.values.ravel(), wanted.values.values.ravel())[0, 1]
            assert near > 0.98, method


@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_changes_the_video_and_leaves_nothing(kind):
    pipe = quantised(kind)
    plain, before = real.draw(pipe), fingerprint(pipe)
    with reweight(pipe, real.ENGLISH, {"umbrella": 0, "rain": 9}):
        assert not np.array_equal(real.draw(pipe), plain)
    assert fingerprint(pipe) == before
    assert np.array_equal(real.draw(pipe), plain)
