"""Evaluate a model: does a clip show what its prompt asks for?

`python -m tinywan.evaluate --prompts 60 --out DIR` generates clips for held-out scenes. The colour of the
garment and the place are measured on the pixels (judge.py), and every factor that the prompt names is read
off the clip by the probes (probes.py). Judge and probes are given rendered clips of held-out scenes as well,
so that their own errors stand beside the model's.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tinywan.errors import ConfigError, TinywanError
from tinywan.judge import Measurement, degrade, find_region, measure
from tinywan.pipeline import TextToVideoPipeline
from tinywan.probes import FACTORS, accuracy, load_probe
from tinywan.theatre import Caption, Scene, caption, parse, picture_sheet, render, sample_scene
from tinywan.theatre.scene import Split

__all__ = [
    "Measurement",
    "TextToVideo",
    "degrade",
    "evaluate",
    "find_region",
    "judge_judge",
    "main",
    "measure",
    "sample_prompts",
    "table",
]


# What is evaluated: called with (prompt, seed=, progress_bar=, **options) it returns an object with `.frames`,
# float [1, F, H, W, 3] in [0, 1], as a TextToVideoPipeline does.
TextToVideo = Callable[..., Any]


def sample_prompts(
    count: int, seed: int = 0, split: Split = "held_out"
) -> list[tuple[Scene, Caption]]:
    """Sample scenes and prompts, English and Chinese in turn.

    Every prompt names the place and the colours of garment and prop, so that each can be judged.

    Args:
        count: prompts.
        seed: at least 0.
        split: "held_out" for combinations of factors that were never trained on, "train" for others.

    Raises:
        ConfigError: a count or seed that cannot be.
    """
    if count < 1 or seed < 0:
        raise ConfigError(
            f"{count} prompts from seed {seed} cannot be drawn: use a count of 1 or more and a seed of 0 or more"
        )
    rng = np.random.default_rng(seed)
    prompts: list[tuple[Scene, Caption]] = []
    while len(prompts) < count:
        scene = sample_scene(rng, split)
        told = caption(scene, "zh" if len(prompts) % 2 else "en", rng)
        named = parse(told.text)
        if "place" in named and ("prop_color" in named or scene.prop == "none"):
            prompts.append((scene, told))
    return prompts


def judge_judge(count: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure the judge on rendered clips of held-out scenes, as drawn and degraded.

    Args:
        count: clips.
        seed: of scenes and noise.

    Returns:
        "rendered" and "blurred" -> "garment_color" and "place" -> share that the judge got right.
    """
    rng = np.random.default_rng([seed, 1])
    right: dict[str, list[tuple[bool, bool]]] = {"rendered": [], "blurred": []}
    for _ in range(count):
        scene = sample_scene(rng, "held_out")
        frames = render(scene).frames
        for kind, shown in (("rendered", frames), ("blurred", degrade(frames, rng))):
            right[kind].append(_verdict(scene, measure(shown)))
    return {kind: _shares(verdicts) for kind, verdicts in right.items()}


def _verdict(scene: Scene, found: Measurement) -> tuple[bool, bool]:
    return found.garment_color == scene.garment_color, found.place == scene.place


def _shares(verdicts: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    if not verdicts:
        return {"garment_color": math.nan, "place": math.nan}
    garment, place = np.mean(verdicts, axis=0).tolist()
    return {"garment_color": garment, "place": place}


def evaluate(
    pipe: TextToVideo,
    prompts: Sequence[tuple[Scene, Caption]],
    seed: int = 0,
    judge_clips: int = 200,
    progress_bar: bool = True,
    **options: Any,
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Generate a clip for each prompt and judge it.

    Args:
        pipe: makes the clips; prompt number i is drawn with seed + i.
        prompts: scenes with their captions, as from `sample_prompts`.
        seed: at least 0.
        judge_clips: rendered clips that the judge and the probes are measured on.
        progress_bar: show one.
        options: handed on to `pipe`.

    Returns:
        The findings, ready for JSON, and the middle frame of each clip.
    """
    records: list[dict[str, Any]] = []
    pictures = []
    probe = load_probe()
    for number, (scene, told) in enumerate(
        tqdm(prompts, "evaluate", disable=not progress_bar, unit="clip")
    ):
        made = np.asarray(
            pipe(told.text, seed=seed + number, progress_bar=False, **options).frames
        )[0]
        frames = np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)
        found = measure(frames)
        garment_right, place_right = _verdict(scene, found)
        pictures.append(frames[len(frames) // 2])
        records.append(
            {
                "prompt": told.text,
                "language": told.language,
                "seed": seed + number,
                "scene": asdict(scene),
                "garment_color": found.garment_color,
                "garment_color_right": garment_right,
                "place": found.place,
                "place_right": place_right,
                "asked": {name: getattr(scene, name) for name in parse(told.text)},
                "seen": probe.read(frames),
            }
        )
    generated = {}
    for language in ("en", "zh", "all"):
        chosen = [record for record in records if language in (record["language"], "all")]
        verdicts = [(record["garment_color_right"], record["place_right"]) for record in chosen]
        generated[language] = {
            "clips": len(chosen),
            **_shares(verdicts),
            "factors": _factor_shares(chosen),
        }
    findings = {
        "seed": seed,
        "options": options,
        "generated": generated,
        "judge": {"clips": judge_clips, **judge_judge(judge_clips, seed)},
        "probes": accuracy(probe, judge_clips),
        "prompts": records,
    }
    return findings, pictures


def _factor_shares(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By factor in how many prompts it is named, and in which share of their clips the probe sees it."""
    shares = {}
    for name in FACTORS:
        right = [r["seen"][name] == r["asked"][name] for r in records if name in r["asked"]]
        if right:
            shares[name] = {"asked": len(right), "right": float(np.mean(right))}
    return shares


def table(findings: dict[str, Any]) -> str:
    """The findings of `evaluate` as lines of text."""
    generated, judge = findings["generated"], findings["judge"]
    rows = [
        (f"generated, {name}", generated[name]["clips"], generated[name])
        for name in ("en", "zh", "all")
    ]
    rows += [
        (f"judge on {name} clips", judge["clips"], judge[name]) for name in ("rendered", "blurred")
    ]
    lines = [f"{'':26}{'clips':>6}{'garment colour':>16}{'place':>9}"]
    for name, clips, shares in rows:
        cells = [
            "-" if math.isnan(shares[key]) else f"{shares[key]:.1%}"
            for key in ("garment_color", "place")
        ]
        lines.append(f"{name:26}{clips:>6}{cells[0]:>16}{cells[1]:>9}")
    everything, probes = generated["all"]["factors"], findings["probes"]
    lines += ["", f"{'read by the probes':20}{'asked':>6}{'all':>9}{'en':>9}{'zh':>9}{'probe':>9}"]
    for name, all_of_them in everything.items():
        per_language = (generated[k]["factors"].get(name, {}).get("right") for k in ("en", "zh"))
        cells = [
            "-" if share is None or math.isnan(share) else f"{share:.1%}"
            for share in (all_of_them["right"], *per_language, probes["degraded"][name])
        ]
        lines.append(f"{name:20}{all_of_them['asked']:>6}" + "".join(f"{c:>9}" for c in cells))
    mean = np.mean([found["right"] for found in everything.values()])
    lines.append(f"{'mean of the factors':20}{'':6}{mean:>9.1%}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate clips for prompts, judge them, and write evaluation.json and a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.evaluate", description=main.__doc__)
    parser.add_argument(
        "--prompts", type=int, default=60, help="how many prompts, half of them Chinese"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--split",
        choices=("held_out", "train"),
        default="held_out",
        help="combinations of factors that were never trained on, or others",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=None,
        help="folder of weights; the shipped ones if not given",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    parser.add_argument(
        "--judge-clips", type=int, default=200, help="clips to measure judge and probes on"
    )
    chosen = parser.parse_args(arguments)
    try:
        prompts = sample_prompts(chosen.prompts, chosen.seed, chosen.split)
        chosen.out.mkdir(parents=True, exist_ok=True)
        pipe = TextToVideoPipeline.from_pretrained(chosen.checkpoint, device=chosen.device)
        options = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}
        findings, pictures = evaluate(pipe, prompts, chosen.seed, chosen.judge_clips, **options)
        _write(chosen.out, findings, pictures)
    except (TinywanError, OSError) as error:
        print(f"tinywan.evaluate: {error}", file=sys.stderr)
        return 2
    print(table(findings))
    print(f"wrote {chosen.out / 'evaluation.json'} and {chosen.out / 'evaluation.png'}")
    return 0


def _write(
    folder: Path, findings: dict[str, Any], pictures: Sequence[npt.NDArray[np.uint8]]
) -> None:
    """Write both files whole or not at all."""
    captions = [
        f"{record['prompt']} {'+' if record['garment_color_right'] else '-'}{'+' if record['place_right'] else '-'}"
        for record in findings["prompts"]
    ]
    text, sheet = folder / "evaluation.json", folder / "evaluation.png"
    part = text.with_suffix(".json.part")
    part.write_text(json.dumps(findings, ensure_ascii=False, indent=1), encoding="utf-8")
    part.replace(text)
    part = sheet.with_suffix(".png.part")
    picture_sheet(pictures, captions, columns=6, scale=2).save(part, format="PNG")
    part.replace(sheet)


if __name__ == "__main__":
    sys.exit(main())
