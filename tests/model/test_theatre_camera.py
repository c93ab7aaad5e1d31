"""Moving cameras: the world goes by, everybody keeps their own way, and the flow says so exactly."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tinywan import theatre
from tinywan.theatre import CAMERAS, Clip, Scene, render, sample_scene

FLAGSHIP = Scene("woman", "qipao", "red", "umbrella", "yellow", "alley", "rain", "walk", "left", 7)
CLEAR = replace(FLAGSHIP, place="park", weather="clear", direction="right")
MOVING = [camera for camera in CAMERAS if camera != "still"]
ACTORS = ("subject", "prop", "companion")
PARTICLES = ("rain", "snow", "drips", "wind")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(30)
    return [sample_scene(rng, "all", "whole") for _ in range(80)]


@pytest.fixture(scope="module")
def clips(scenes: list[Scene]) -> list[Clip]:
    return [render(scene) for scene in scenes]


def _owners(clip: Clip) -> npt.NDArray[np.intp]:
    """Number of the one actor, kind of particle or scenery that each pixel shows."""
    masks = [
        clip.masks.get(name, np.zeros(clip.frames.shape[:3], bool))
        for name in (*ACTORS, *PARTICLES, "place")
    ]
    np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    return np.argmax(masks, axis=0)


def _warped(
    picture: npt.NDArray[np.uint8 | np.bool_], flow: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """`picture` where the flow leads, between pixels by linear interpolation; and where that is inside."""
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = columns + flow[..., 0].astype(float), rows + flow[..., 1].astype(float)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right, down = (x - left)[..., None], (y - top)[..., None]
    upper = picture[top, left] * (1 - right) + picture[top, left + 1] * right
    lower = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down, inside


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask and the pixels around it, with which its edges blend."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    across = grown.copy()
    grown[:, 1:] |= across[:, :-1]
    grown[:, :-1] |= across[:, 1:]
    return grown


def _center(mask: npt.NDArray[np.bool_]) -> float:
    return float(np.nonzero(mask)[1].mean())


def test_nobody_leaves_the_picture_under_any_camera() -> None:
    rng = np.random.default_rng(33)
    for number in range(150):
        scene = sample_scene(rng, "all", "whole")
        clip = render(scene, *((17, 96, 96), (17, 64, 64), (40, 96, 96))[number % 3])
        seen = np.any([clip.masks[name] for name in ACTORS if name in clip.masks], axis=0)
        for border in (seen[:, 0], seen[:, -1], seen[:, :, 0], seen[:, :, -1]):
            assert not border.any(), scene


def test_flow_carries_whole_scenes_into_the_next_frame(
    scenes: list[Scene], clips: list[Clip]
) -> None:
    """Where nothing gets covered or uncovered, the colour arrives where the flow says."""
    rows, columns = np.mgrid[0:96, 0:96]
    for scene, clip in zip(scenes, clips, strict=True):
        owner = _owners(clip)
        same = total = 0
        for t in range(16):
            arrived, inside = _warped(clip.frames[t + 1], clip.flow[t])
            to = np.round(np.stack([rows, columns], -1) + clip.flow[t, ..., ::-1]).astype(int)
            to_row, to_column = np.clip(to, 0, 95)[..., 0], np.clip(to, 0, 95)[..., 1]
            kept = inside & (owner[t] == owner[t + 1][to_row, to_column])
            assert kept.sum() > 0.8 * inside.sum(), scene
            change = np.abs(arrived - clip.frames[t]).max(axis=-1)
            same += int((change[kept] < 48).sum())
            total += int(kept.sum())
        assert same / total > 0.97, scene


@pytest.mark.parametrize("camera", MOVING)
def test_true_flow_of_scenery_warps_better_than_a_shorter_or_longer_one(camera: str) -> None:
    for place in theatre.PLACES:
        clip = render(replace(CLEAR, camera=camera, place=place))
        errors: dict[float, list[float]] = {0.0: [], 0.8: [], 1.0: [], 1.2: []}
        for t in range(16):
            inner = ~_grown(~clip.masks["place"][t])
            there, _ = _warped(~_grown(~clip.masks["place"][t + 1])[..., None], clip.flow[t])
            for share, found in errors.items():
                arrived, inside = _warped(clip.frames[t + 1], share * clip.flow[t])
                change = np.abs(arrived - clip.frames[t])
                found.append(float(change[inside & inner & (there[..., 0] == 1)].mean()))
        unmoved, shorter, true, longer = (np.mean(found) for found in errors.values())
        assert true < min(shorter, longer)
        if camera == "zoom in":  # between pixels, in levels of 255
            assert true < min(2.0, 0.65 * unmoved)
        else:
            assert true == 0


@pytest.mark.parametrize(("camera", "pixels"), [("pan left", 1), ("pan right", -1), ("still", 0)])
def test_panning_camera_moves_all_scenery_by_whole_pixels(camera: str, pixels: int) -> None:
    clip = render(replace(CLEAR, camera=camera))
    scenery = clip.flow[clip.masks["place"][:-1]]
    np.testing.assert_array_equal(scenery, np.broadcast_to((pixels, 0), scenery.shape))


@pytest.mark.parametrize("camera", ["pan left", "pan right"])
@pytest.mark.parametrize("place", theatre.PLACES)
@pytest.mark.parametrize("weather", ["clear", "snow"])
def test_pan_goes_past_the_scenery_of_the_still_camera(
    camera: str, place: str, weather: str
) -> None:
    """Half way the camera stands where the still one does, and sees the same."""
    for seed in range(6):
        scene = replace(FLAGSHIP, place=place, weather=weather, seed=seed)
        still, panned = render(scene), render(replace(scene, camera=camera))
        both = still.masks["place"][8] & panned.masks["place"][8]
        assert both.mean() > 0.5
        differ = (still.frames[8] != panned.frames[8]).any(axis=-1) & both
        # What lies beyond may reach in by a pixel.
        assert not (differ & ~_grown(~both))[:, 1:-1].any()


@pytest.mark.parametrize("action", theatre.ACTIONS)
@pytest.mark.parametrize("camera", ["pan left", "pan right"])
def test_subject_keeps_its_way_through_the_world_under_a_pan(action: str, camera: str) -> None:
    scene = replace(CLEAR, prop="none", prop_color="none", action=action)
    own = {"walk": 1.0, "run": 2.0, "stand": 0.0}[action]
    clip = render(replace(scene, camera=camera))
    garment, scenery = clip.masks["garment"][:-1], clip.masks["place"][:-1]
    moved = clip.flow[garment][:, 0].mean() - clip.flow[scenery][:, 0].mean()
    assert moved == pytest.approx(own, abs=0.02)
    centers = [_center(mask) for mask in clip.masks["garment"]]
    turned = 16 if camera == "pan left" else -16
    assert centers[-1] - centers[0] == pytest.approx(16 * own + turned, abs=1.5)


@pytest.mark.parametrize("weather", ["rain", "snow"])
def test_rain_and_snow_fall_in_the_world_that_the_camera_pans_over(weather: str) -> None:
    scene = replace(CLEAR, weather=weather)
    speeds = [
        clip.flow[clip.masks[weather][:-1]][:, 0].mean()
        for clip in (render(replace(scene, camera=camera)) for camera in ("still", "pan right"))
    ]
    assert speeds[1] - speeds[0] == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("wind", ["none", "windy"])
@pytest.mark.parametrize("weather", ["rain", "snow"])
@pytest.mark.parametrize("camera", ["still", "pan left", "pan right"])
def test_every_particle_arrives_where_its_flow_leads(camera: str, weather: str, wind: str) -> None:
    """Unless it leaves the picture, or somebody is in front of it by then."""
    clip = render(replace(FLAGSHIP, camera=camera, weather=weather, wind=wind, companion="cat",
                          companion_color="black"))  # fmt: skip
    falling = clip.masks[weather]
    before = np.any([clip.masks[name] for name in ACTORS], axis=0)
    if "drips" in clip.masks:
        before |= clip.masks["drips"]
    for t in range(16):
        row, column = np.nonzero(falling[t])
        dx, dy = clip.flow[t, row, column].astype(int).T
        row, column = row + dy, column + dx
        inside = (row < 96) & (column >= 0) & (column < 96)
        row, column = row[inside], column[inside]
        assert inside.mean() > 0.8
        assert (falling[t + 1] | before[t + 1])[row, column].all()


@pytest.mark.parametrize("camera", ["still", "pan left", "pan right"])
def test_what_the_wind_whirls_up_arrives_where_its_flow_leads(camera: str) -> None:
    """Unless it leaves the picture, or somebody or something that falls is in front of it by then."""
    clip = render(replace(FLAGSHIP, camera=camera, wind="windy", companion="cat",
                          companion_color="black"))  # fmt: skip
    spray = clip.masks["wind"]
    before = np.any([clip.masks[name] for name in (*ACTORS, "rain", "drips")], axis=0)
    for t in range(16):
        row, column = np.nonzero(spray[t])
        dx, dy = clip.flow[t, row, column].astype(int).T
        row, column = row + dy, column + dx
        inside = (column >= 0) & (column < 96)
        assert inside.mean() > 0.8
        assert (spray[t + 1] | before[t + 1])[row[inside], column[inside]].all()


def test_zoomed_rain_falls_faster_on_top_of_the_way_of_the_scenery() -> None:
    clip = render(replace(CLEAR, weather="rain", prop="none", prop_color="none", camera="zoom in"))
    for t in range(16):
        row, column = np.nonzero(clip.masks["place"][t])
        scenery = clip.flow[t, row, column]
        slope_x, at_x = np.polyfit(column, scenery[:, 0], 1)
        slope_y, at_y = np.polyfit(row, scenery[:, 1], 1)
        row, column = np.nonzero(clip.masks["rain"][t])
        rain = clip.flow[t, row, column]
        scale = 1 + 0.25 * (t + 1) / 16
        np.testing.assert_allclose(rain[:, 1] - slope_y * row - at_y, 4 * scale, atol=1e-3)
        own = (rain[:, 0] - slope_x * column - at_x) / scale
        np.testing.assert_allclose(own, own.round(), atol=1e-3)


@pytest.mark.parametrize("size", [48, 64, 96, 128])
@pytest.mark.parametrize("camera", ["pan left", "pan right"])
def test_world_is_painted_as_far_as_the_camera_sees(camera: str, size: int) -> None:
    """The sky over the park is of one colour from edge to edge."""
    sky = render(replace(CLEAR, camera=camera), 17, size, size).frames[:, 0]
    assert not np.ptp(sky, axis=(0, 1)).any()


def test_zoom_starts_from_the_still_picture_and_ends_a_quarter_larger() -> None:
    scene = replace(CLEAR, prop="none", prop_color="none", action="stand")
    still, zoomed = render(scene), render(replace(scene, camera="zoom in"))
    np.testing.assert_array_equal(still.frames[0], zoomed.frames[0])
    for name in ("subject", "garment"):
        before, after = (clip.masks[name][16].sum() for clip in (still, zoomed))
        assert after / before == pytest.approx(1.25**2, rel=0.04)
    sizes = zoomed.masks["subject"].sum(axis=(1, 2))
    assert (np.diff(sizes[::4]) > 0).all()
