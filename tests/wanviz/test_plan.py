"""Memory is declared before it is used."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import wanviz
from tests.wanviz import real_wan
from wanviz.grid import latent_frame, pixel_frame_label, pixel_frames, token_grid
from wanviz.layout import parse_bytes

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
ENGLISH = "a woman in a red qipao and a child in a blue coat walk in the rain"
SMALL = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 4}  # of `generate`


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": [()]},
        {"keep": [("layer", "step", "head"), ("step",)]},
        {"frames": None},
        {"routing": False},
        {"branches": ("cond", "uncond")},
        {"previews": True, "select": {"step": [0, 2]}},
        {"links": True, "branches": ("cond", "uncond")},
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, ENGLISH])
def test_a_plan_tells_the_kept_bytes_to_the_byte(pipe, generate, options, prompt):
    planned = wanviz.plan(pipe, prompt, negative_prompt="blurred", **options, **SMALL)
    with wanviz.capture(pipe, **options) as trace:
        generate(prompt, negative_prompt="blurred")
    held = sum(array.nbytes for array in trace.contents.arrays.values())
    assert planned.nbytes == trace.nbytes == held
    assert {s.name: s.shape for s in planned.arrays} == {
        name: array.shape for name, array in trace.contents.arrays.items()
    }


def test_a_plan_of_latent_output_leaves_out_the_video(pipe, generate):
    planned = wanviz.plan(pipe, PROMPT, output_type="latent", **SMALL)
    with wanviz.capture(pipe) as trace:
        generate(output_type="latent")
    assert planned.nbytes == trace.nbytes


def test_a_plan_takes_the_models_own_defaults(pipe, generate):
    with wanviz.capture(pipe) as trace:
        pipe(PROMPT, seed=1, progress_bar=False)
    assert wanviz.plan(pipe, PROMPT).nbytes == trace.nbytes


def test_a_plan_counts_the_extra_work(pipe):
    words = wanviz.plan(pipe, PROMPT, frames=None, **SMALL)
    both = wanviz.plan(pipe, PROMPT, **SMALL)
    twice = wanviz.plan(pipe, PROMPT, **{**SMALL, "num_inference_steps": 8})
    assert 0 < words.extra_flops < both.extra_flops < both.model_flops
    assert twice.extra_flops == 2 * both.extra_flops
    assert "KiB" in repr(both)
    assert "more arithmetic" in repr(both)


def counted(run, watch):
    """Operations of products in a run; of fused attention on a CPU, which nobody else counts, too."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    by_hand = {fused: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(q, k, v)}
    with watch, FlopCounterMode(display=False, custom_mapping=by_hand) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("num_frames", "options"),
    [
        (33, {"frames": None}),
        (33, {"frames": "sampled"}),
        (33, {"frames": "exact"}),
        (33, {"frames": None, "links": True}),
        (133, {"frames": "exact", "select": {"layer": [1], "head": [0]}}),  # 34 frames, 2 groups
        (33, {"frames": "exact", "links": True, "branches": ("cond", "uncond")}),
    ],
)
def test_a_plan_tells_the_products_that_watching_real_wan_adds(num_frames, options):
    pipe = real_wan.wan21(num_attention_heads=2, attention_head_dim=32, ffn_dim=64)
    asked = {"height": 64, "width": 96, "num_frames": num_frames, "num_inference_steps": 1}

    def run():
        real_wan.draw(pipe, output_type="latent", **asked)

    planned = wanviz.plan(pipe, real_wan.ENGLISH, negative_prompt="blurred", **options, **asked)
    added = counted(run, wanviz.capture(pipe, **options)) - counted(run, nullcontext())
    assert planned.extra_flops == added


def test_a_plan_tells_the_products_of_links_between_places(pipe, generate):
    with_links, without = (
        wanviz.plan(pipe, PROMPT, links=links, **SMALL) for links in (True, False)
    )
    told = with_links.extra_flops - without.extra_flops
    ran = [counted(generate, wanviz.capture(pipe, links=links)) for links in (True, False)]
    assert told == ran[0] - ran[1] > 0


def test_a_plan_tells_how_often_previews_decode_the_video(pipe):
    some = wanviz.plan(pipe, PROMPT, previews=True, select={"step": [0, 2]}, **SMALL)
    assert some.decodings == 2
    assert "2 × decoding the video" in repr(some)
    assert "decoding" not in repr(wanviz.plan(pipe, PROMPT, **SMALL))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory")
def test_watching_adds_no_more_to_the_peak_than_the_plan_declares():
    """The benchmark's shape and its way to measure: each run in a process of its own."""
    benchmark = Path(__file__).parents[1] / "benchmarks" / "bench_real_wan.py"
    command = [sys.executable, str(benchmark), "--steps", "1", "--child"]
    plain, watched = (
        json.loads(subprocess.check_output([*command, kind], text=True).splitlines()[-1])
        for kind in ("plain", "watched")
    )
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512, "num_layers": 4}
    planned = wanviz.plan(
        real_wan.wan21(**sizes),
        " ".join(real_wan.ENGLISH.split()[:12]),
        height=256,
        width=256,
        num_frames=81,
        num_inference_steps=1,
        output_type="latent",
    )
    assert watched["kept"] == planned.nbytes
    assert watched["peak"] - plain["peak"] <= planned.nbytes + planned.work_bytes


def test_over_budget_is_refused_before_the_first_block_runs(pipe, generate):
    need, ran = wanviz.plan(pipe, PROMPT, **SMALL).nbytes, []
    block = pipe.transformer.blocks[0]
    handle = block.register_forward_pre_hook(lambda m, i: ran.append("block"))
    with (
        pytest.raises(
            wanviz.BudgetError, match=r"keep=\[.*needs .* KiB; or keep a few words"
        ) as error,
        wanviz.capture(pipe, budget=need - 1) as trace,
    ):
        generate()
    handle.remove()
    assert ran == []
    assert isinstance(error.value, MemoryError)
    assert "empty" in repr(trace)
    with wanviz.capture(pipe, budget=need) as trace:
        generate()
    assert trace.nbytes == need


def test_what_the_budget_error_suggests_works(pipe, generate):
    fits = wanviz.plan(pipe, PROMPT, keep=[("layer",)], **SMALL).nbytes
    with (
        pytest.raises(wanviz.BudgetError, match=r"keep=\[\('layer',\)\] needs"),
        wanviz.capture(pipe, budget=fits),
    ):
        generate()
    with wanviz.capture(pipe, keep=[("layer",)], budget=fits) as trace:
        generate()
    assert trace.nbytes == fits


def test_a_budget_too_small_for_anything_says_the_least_that_works(pipe, generate):
    least = wanviz.plan(pipe, PROMPT, keep=[()], frames=None, routing=False, **SMALL).nbytes
    with (
        pytest.raises(wanviz.BudgetError, match=rf"the least is {least} bytes.*routing=False$"),
        wanviz.capture(pipe, budget=1000),
    ):
        generate()
    with (
        pytest.raises(wanviz.BudgetError, match=r"routing=False, previews=False, links=False$"),
        wanviz.capture(pipe, budget=1000, previews=True, links=True),
    ):
        generate()


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(7, 7), ("512MiB", 512 * 2**20), ("1GiB", 2**30), ("1.5 GB", 1_500_000_000), ("9", 9)],
)
def test_a_budget_is_a_number_or_a_size_with_a_unit(budget, expected):
    assert parse_bytes(budget) == expected


@pytest.mark.parametrize("budget", [0, -1, True, None, "GiB", "1 apple", "-1GiB", 1.5])
def test_a_budget_that_is_no_size_gets_a_sentence(budget):
    with pytest.raises(wanviz.OptionError, match="is not a size"):
        parse_bytes(budget)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"num_frames": 16}, r"num_frames=16.*13 or 17"),
        ({"num_frames": 80}, r"num_frames=80.*77 or 81"),
        ({"height": 90}, r"height=90.*88 or 96"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
    ],
)
def test_a_size_that_does_not_fit_gets_a_sentence(pipe, size, sentence):
    with pytest.raises(wanviz.OptionError, match=sentence):
        wanviz.plan(pipe, PROMPT, **size)


def test_latent_frames_stand_for_the_causal_vaes_pixel_frames():
    assert list(pixel_frames(0)) == [0]
    assert list(pixel_frames(3)) == [9, 10, 11, 12]  # 4i-3 .. 4i
    assert pixel_frame_label(4) == "13-16"
    covered = [frame for i in range(5) for frame in pixel_frames(i)]
    assert covered == list(range(17))
    assert [latent_frame(frame) for frame in (0, 1, 4, 5, 16)] == [0, 1, 1, 2, 4]


def test_the_token_grid_divides_by_vae_stride_and_patch():
    grid = token_grid(81, 480, 832, vae_stride=(4, 8, 8), patch_size=(1, 2, 2))
    assert grid.shape == (21, 30, 52)
    assert grid.tokens == 32_760


def test_tokens_lie_frame_major(pipe, generate):
    with wanviz.capture(pipe, keep=[("layer", "step", "head")]) as trace:
        generate()
    assert trace.maps[()].shape[-3:] == (3, 4, 6)
    assert np.prod(trace.maps[()].shape[-3:]) == 72
