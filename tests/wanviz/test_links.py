"""Where some places of each frame look in the other frames."""

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz import real_wan
from wanviz.grid import Grid, link_places
from wanviz.page import page_data

EXACT = 1e-5


def test_the_places_are_spread_evenly_and_all_where_there_are_few():
    assert link_places(Grid(5, 12, 12))[:5] == [(1, 1), (1, 4), (1, 7), (1, 10), (4, 1)]
    few = [(row, column) for row in range(3) for column in (5, 15, 25, 35)]
    assert link_places(Grid(2, 3, 40)) == few


def temporal_calls(pipe, generate):
    """Queries and keys of the first row of each call of temporal attention: (layer, q, k) in float64."""
    calls, handles = [], []
    for model in (pipe.transformer, pipe.transformer_2):
        for layer, block in enumerate(model.blocks):
            slot = {}

            def look(name, output, layer=layer, slot=slot):
                slot[name] = output[0].double()
                if len(slot) == 2:
                    calls.append((layer, slot.pop("q"), slot.pop("k")))

            for name in ("q", "k"):
                tap = getattr(block.temporal_attn, name)
                handles.append(
                    tap.register_forward_hook(lambda m, i, o, name=name, look=look: look(name, o))
                )
    generate()
    for handle in handles:
        handle.remove()
    return calls


def test_links_are_the_mean_softmax_of_the_models_temporal_attention(pipe, generate):
    calls = temporal_calls(pipe, generate)
    with wanviz.capture(pipe, links=True) as trace:
        generate()
    links = trace.links
    grid = trace.contents.grid.shape
    frames = grid[0]
    places = list(zip(links.query_row.values, links.query_column.values, strict=True))
    assert links.shape == (frames, len(places), *grid)
    expected = np.zeros(links.shape)
    apart = (torch.arange(frames)[:, None] - torch.arange(frames)).abs()
    for layer, *pair in calls:
        q, k = (x.unflatten(1, grid) for x in pair)
        logits = torch.einsum("nfhwd,nghwd->nhwfg", q, k) / q.shape[-1] ** 0.5
        window = pipe.transformer.blocks[layer].temporal_attn.window
        if window is not None:
            logits = logits.masked_fill(apart > window, -torch.inf)
        mass = logits.softmax(-1).mean(0).numpy()  # h w f g
        for place, (row, column) in enumerate(places):
            expected[:, place, :, row, column] += mass[row, column]
    np.testing.assert_allclose(links.values, expected / len(calls), atol=EXACT)
    np.testing.assert_allclose(links.sum(("frame", "row", "column")).values, 1, atol=EXACT)


def test_in_real_wan_places_look_anywhere_and_frames_get_what_frame_attention_says(tmp_path):
    pipe = real_wan.wan21()
    pipe.set_progress_bar_config(disable=True)
    with wanviz.capture(pipe, links=True, frames="exact") as trace:
        pipe(
            "a dog", height=64, width=48, num_frames=9, num_inference_steps=2,
            output_type="latent", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    links = trace.links
    assert links.sizes["place"] == trace.contents.grid.rows_and_columns  # few: all are followed
    np.testing.assert_allclose(links.sum(("frame", "row", "column")).values, 1, atol=EXACT)
    frames = trace.frame_attention().mass.values
    by_frames = links.sum(("row", "column")).mean("place").values
    np.testing.assert_allclose(by_frames, frames, atol=EXACT)
    places = zip(links.query_row.values, links.query_column.values, strict=True)
    stays = [links.values[:, place, :, row, column] for place, (row, column) in enumerate(places)]
    assert np.sum(stays) < 0.5 * links.sizes["query_frame"] * links.sizes["place"]
    trace.save(tmp_path / "a.trace")
    assert np.array_equal(wanviz.Trace.load(tmp_path / "a.trace").links.values, links.values)


def test_without_being_asked_nothing_is_followed(trace):
    with pytest.raises(wanviz.KeepError, match="capture with links=True"):
        _ = trace.links
    assert page_data(trace)["links"] is None


def test_a_page_has_the_place_that_gets_most_and_what_the_frame_gets(painted):
    trace = painted(links=True)
    found = page_data(trace)["links"]
    for q, place, k in ((0, 3, 4), (2, 15, 2), (4, 0, 1)):
        mass = trace.links.values[q, place, k]
        assert found["cells"][q][place][k] == int(mass.argmax())
        assert found["mass"][q][place][k] == pytest.approx(float(mass.sum()), rel=1e-3)
    assert found["places"][5] == [4, 4]
