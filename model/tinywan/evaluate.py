"""Evaluate a model: does a clip show what its prompt asks for, and how well?

`python -m tinywan.evaluate --out DIR` generates clips for 200 held-out scenes, and for some of combinations that
were trained on. The colour of the garment and the place are measured on the pixels (judge.py), and every factor
that the prompt names is read off the clip by the probes (probes.py). Judge and probes are given rendered clips of
held-out scenes as well, so that their own errors stand beside the model's. Flicker, steadiness, keyframes and the
VAE are measured as quality.py says; everything ends up in one JSON, one table and one contact sheet.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
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
from tinywan.quality import (
    count_token_experts,
    flicker,
    keyframe_psnr,
    sample_scenes,
    unsteadiness,
    vae_psnr,
)
from tinywan.theatre import Caption, Scene, caption, parse, picture_sheet, render, sample_scene
from tinywan.theatre.scene import Split, World
from tinywan.vae import CausalVAE

__all__ = [
    "Measurement",
    "TextToVideo",
    "degrade",
    "evaluate",
    "find_region",
    "flagship",
    "judge_judge",
    "main",
    "markdown",
    "measure",
    "sample_prompts",
    "table",
]


# What is evaluated: called with (prompt, seed=, progress_bar=, **options) it returns an object with `.frames`,
# float [1, F, H, W, 3] in [0, 1], as a TextToVideoPipeline does.
TextToVideo = Callable[..., Any]


FLAGSHIP = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
REFINE, REFINED = (
    10,
    40,
)  # steps that improve the latents of the first clips, and how many these are
FLAGSHIP_SHOWS = {
    "subject": "woman",
    "garment": "qipao",
    "garment_color": "red",
    "prop": "umbrella",
    "weather": "rain",
    "place": "alley",
}


def sample_prompts(
    count: int, seed: int = 0, split: Split = "held_out", world: World = "first"
) -> list[tuple[Scene, Caption]]:
    """Sample scenes and prompts, English and Chinese in turn.

    Every prompt names the place, and the colours of garment and prop where the look shows them, so that each can
    be judged.

    Args:
        count: prompts.
        seed: at least 0.
        split: "held_out" for combinations of factors that were never trained on, "train" for others.
        world: of the theatre.

    Raises:
        ConfigError: a count or seed that cannot be.
    """
    _check_request(count, seed)
    rng = np.random.default_rng(seed)
    prompts: list[tuple[Scene, Caption]] = []
    while len(prompts) < count:
        scene = sample_scene(rng, split, world)
        told = caption(scene, "zh" if len(prompts) % 2 else "en", rng)
        named = parse(told.text)
        colorless = scene.prop == "none" or scene.look == "monochrome"
        if "place" in named and ("prop_color" in named or colorless):
            prompts.append((scene, told))
    return prompts


def _check_request(count: int, seed: int) -> None:
    if count < 1 or seed < 0:
        raise ConfigError(
            f"{count} prompts from seed {seed} cannot be drawn: use a count of 1 or more and a seed of 0 or more"
        )


def judge_judge(count: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure the judge on rendered clips of held-out scenes, as drawn and degraded.

    Args:
        count: clips.
        seed: of scenes and noise.

    Returns:
        "rendered" and "blurred" -> "garment_color" and "place" -> share that the judge got right.
    """
    rng = np.random.default_rng([seed, 1])
    right: dict[str, list[tuple[bool | None, bool]]] = {"rendered": [], "blurred": []}
    for _ in range(count):
        scene = sample_scene(rng, "held_out")
        frames = render(scene).frames
        for kind, shown in (("rendered", frames), ("blurred", degrade(frames, rng))):
            right[kind].append(_verdict(scene, measure(shown)))
    return {kind: _shares(verdicts) for kind, verdicts in right.items()}


def _verdict(scene: Scene, found: Measurement) -> tuple[bool | None, bool]:
    """Whether garment colour and place are right; no colour is judged through film or in black and white."""
    garment = found.garment_color == scene.garment_color if scene.look == "plain" else None
    return garment, found.place == scene.place


def _shares(verdicts: Sequence[tuple[bool | None, bool]]) -> dict[str, float]:
    garments = [garment for garment, _ in verdicts if garment is not None]
    places = [place for _, place in verdicts]
    return {"garment_color": _mean(garments), "place": _mean(places)}


def _mean(values: Iterable[float]) -> float:
    """Their mean; NaN of none at all."""
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def evaluate(
    pipe: TextToVideo,
    prompts: Sequence[tuple[Scene, Caption]],
    seed: int = 0,
    judge_clips: int = 200,
    progress_bar: bool = True,
    vae: CausalVAE | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Generate a clip for each prompt and judge it.

    Args:
        pipe: makes the clips; prompt number i is drawn with seed + i.
        prompts: scenes with their captions, as from `sample_prompts`.
        seed: at least 0.
        judge_clips: rendered clips that the judge and the probes are measured on.
        progress_bar: show one.
        vae: to measure the probes on clips that went through it, too.
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
        frames = _draw(pipe, told.text, seed + number, options)
        found = measure(frames)
        garment_right, place_right = _verdict(scene, found)
        pictures.append(frames[len(frames) // 2])
        true = render(scene, *frames.shape[:3])
        color = scene.garment_color if scene.look == "plain" else None
        steady = {
            kind: unsteadiness(find_region(clip, color)) if color else math.nan
            for kind, clip in (("generated", frames), ("rendered", true.frames))
        }
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
                "flicker": {"generated": flicker(frames), "rendered": flicker(true.frames)},
                "unsteadiness": steady
                if not any(map(math.isnan, steady.values()))
                else dict.fromkeys(steady, math.nan),
            }
        )
    generated = {}
    for language in ("en", "zh", "all"):
        chosen = [record for record in records if language in (record["language"], "all")]
        verdicts = [(record["garment_color_right"], record["place_right"]) for record in chosen]
        factors = _factor_shares(chosen)
        generated[language] = {
            "clips": len(chosen),
            **_shares(verdicts),
            "factors": factors,
            "mean": _mean(share["right"] for share in factors.values()),
            **{
                measure_: {
                    kind: _mean(record[measure_][kind] for record in chosen)
                    for kind in ("generated", "rendered")
                }
                for measure_ in ("flicker", "unsteadiness")
            },
        }
    findings = {
        "seed": seed,
        "options": options,
        "generated": generated,
        "judge": {"clips": judge_clips, **judge_judge(judge_clips, seed)},
        "probes": accuracy(probe, judge_clips, vae=vae),
        "prompts": records,
    }
    return findings, pictures


def _draw(
    pipe: TextToVideo, prompt: str, seed: int, options: dict[str, Any]
) -> npt.NDArray[np.uint8]:
    made = np.asarray(pipe(prompt, seed=seed, progress_bar=False, **options).frames)[0]
    return np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8)


def _factor_shares(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By factor in how many prompts it is named, and in which share of their clips the probe sees it."""
    shares = {}
    for name in FACTORS:
        right = [r["seen"][name] == r["asked"][name] for r in records if name in r["asked"]]
        if right:
            shares[name] = {"asked": len(right), "right": float(np.mean(right))}
    return shares


def flagship(
    pipe: TextToVideo, seeds: int, progress_bar: bool = True, **options: Any
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """Draw the flagship prompt with many seeds, and see whether all of it is there.

    Args:
        pipe: makes the clips.
        seeds: 0 to this number less one are drawn.
        progress_bar: show one.
        options: handed on to `pipe`.

    Returns:
        By factor in how many clips it is right, and in how many all are; and the middle frame of each clip. The
        garment's colour and the place are measured by the judge, the others read by the probes.
    """
    probe = load_probe()
    right: dict[str, list[bool]] = {name: [] for name in FLAGSHIP_SHOWS}
    pictures = []
    for seed in tqdm(range(seeds), "flagship", disable=not progress_bar, unit="clip"):
        frames = _draw(pipe, FLAGSHIP, seed, options)
        found = measure(frames)
        seen = probe.read(frames) | {"garment_color": found.garment_color, "place": found.place}
        for name, wanted in FLAGSHIP_SHOWS.items():
            right[name].append(seen[name] == wanted)
        pictures.append(frames[len(frames) // 2])
    whole = [all(verdicts) for verdicts in zip(*right.values(), strict=True)]
    counts = {name: sum(verdicts) for name, verdicts in right.items()}
    return {"prompt": FLAGSHIP, "seeds": seeds, "right": counts, "all": sum(whole)}, pictures


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
    everything, probes = generated["all"]["factors"], _probe_shares(findings)
    seen = findings.get("seen", {}).get("all", {"factors": {}, "mean": math.nan})
    heads = ("all", "en", "zh", "seen", "probe")
    lines += ["", f"{'read by the probes':20}{'asked':>6}" + "".join(f"{h:>9}" for h in heads)]
    for name, all_of_them in everything.items():
        elsewhere = (generated["en"]["factors"], generated["zh"]["factors"], seen["factors"])
        shares = [by_factor.get(name, {}).get("right") for by_factor in elsewhere]
        cells = [_percent(share) for share in (all_of_them["right"], *shares, probes[name])]
        lines.append(f"{name:20}{all_of_them['asked']:>6}" + "".join(f"{c:>9}" for c in cells))
    means = [_percent(generated[k]["mean"]) for k in ("all", "en", "zh")] + [_percent(seen["mean"])]
    lines.append(f"{'mean of the factors':20}{'':6}" + "".join(f"{cell:>9}" for cell in means))
    return "\n".join([*lines, "", *_quality_lines(findings)])


def _probe_shares(findings: dict[str, Any]) -> dict[str, float]:
    """How often the probes are right on clips that are no better than generated ones can be."""
    probes = findings["probes"]
    shares: dict[str, float] = probes.get("decoded", probes["degraded"])
    return shares


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"


def _quality_lines(findings: dict[str, Any]) -> list[str]:
    everything = findings["generated"]["all"]
    lines = [
        f"{name}: {everything[name]['generated']:.2f} {unit}, in rendered clips of the same scenes "
        f"{everything[name]['rendered']:.2f}"
        for name, unit in (("flicker", "of 255"), ("unsteadiness", "pixels per frame and frame"))
    ]
    if "vae" in findings:
        vae = findings["vae"]
        lines.append(f"VAE: {vae['psnr']:.1f} dB on {vae['clips']} rendered clips")
        if "refined" in vae:
            lines[-1] += (
                f"; {vae['refined']:.1f} dB on {vae['refined_clips']} of them with latents refined in {REFINE} steps"
            )
    if "keyframes" in findings:
        kept = findings["keyframes"]
        lines.append(
            f"keyframes: first {kept['first']:.1f} dB, last {kept['last']:.1f} dB on {kept['clips']} clips"
        )
    if "token_experts" in findings:
        least = findings["token_experts"]["least"]
        lines.append(f"token experts: the one asked least, in any layer, has {least:.1%} of tokens")
    if "flagship" in findings:
        found = findings["flagship"]
        each = ", ".join(f"{name} {count}" for name, count in found["right"].items())
        lines.append(f"flagship: all of it in {found['all']} of {found['seeds']} clips ({each})")
    return lines


def markdown(findings: dict[str, Any]) -> str:
    """The findings as the tables of a model card."""
    generated, probes = findings["generated"], _probe_shares(findings)
    seen = findings.get("seen", {}).get("all", {"factors": {}, "mean": math.nan})
    rows = ["| factor | asked | right | English | Chinese | seen combinations | the probe itself |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, found in generated["all"]["factors"].items():
        elsewhere = (generated["en"]["factors"], generated["zh"]["factors"], seen["factors"])
        shares = [by_factor.get(name, {}).get("right") for by_factor in elsewhere]
        cells = [_percent(share) for share in (found["right"], *shares, probes[name])]
        rows.append(f"| {name} | {found['asked']} | " + " | ".join(cells) + " |")
    means = [_percent(generated[k]["mean"]) for k in ("all", "en", "zh")] + [_percent(seen["mean"])]
    rows.append("| mean | | " + " | ".join(means) + " | |")
    return "\n".join([*rows, "", *(f"* {line}" for line in _quality_lines(findings)), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate clips for prompts, judge them, and write evaluation.json and a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.evaluate", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--prompts", type=int, default=200, help="of held-out combinations")
    parser.add_argument("--seen", type=int, default=100, help="of combinations trained on")
    parser.add_argument("--flagship", type=int, default=20, help="seeds of the flagship prompt")
    parser.add_argument("--keyframe-clips", type=int, default=20, help="clips given keyframes")
    parser.add_argument("--vae-clips", type=int, default=60, help="clips for the VAE alone")
    parser.add_argument("--judge-clips", type=int, default=200, help="for judge and probes alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of weights; the shipped ones if not given"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale")
    chosen = parser.parse_args(arguments)
    try:
        _check_request(chosen.prompts, chosen.seed)  # before weights are loaded
        for name in ("seen", "flagship", "keyframe_clips", "vae_clips", "judge_clips"):
            if getattr(chosen, name) < 0:
                raise ConfigError(
                    f"{name}={getattr(chosen, name)}: use 0, which leaves it out, or more"
                )
        pipe = TextToVideoPipeline.from_pretrained(chosen.checkpoint, device=chosen.device)
        world, seed = pipe.config.world, chosen.seed
        prompts = sample_prompts(chosen.prompts, seed, "held_out", world)
        chosen.out.mkdir(parents=True, exist_ok=True)
        options = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}
        with count_token_experts(pipe) as counts:
            findings, pictures = evaluate(
                pipe, prompts, seed, chosen.judge_clips, vae=pipe.vae, **options
            )
        if counts:
            shares = {name: (count / count.sum()).tolist() for name, count in counts.items()}
            least = min(min(layer) for layer in shares.values())
            findings["token_experts"] = {"least": least, "shares": shares}
        if chosen.seen:
            others = sample_prompts(chosen.seen, seed + 1, "train", world)
            findings["seen"] = evaluate(pipe, others, seed, 0, **options)[0]["generated"]
        if chosen.flagship:
            findings["flagship"], more = flagship(pipe, chosen.flagship, **options)
            _write_sheet(chosen.out / "flagship.png", more, [str(n) for n in range(len(more))])
        if chosen.vae_clips:
            scenes = sample_scenes(chosen.vae_clips, seed, world)
            found = vae_psnr(pipe.vae, scenes, pipe.config.num_frames, pipe.config.height)
            findings["vae"] = {"clips": len(found), "psnr": _mean(found)}
            few = scenes[:REFINED]
            sizes = pipe.config.num_frames, pipe.config.height
            findings["vae"]["refined"] = _mean(vae_psnr(pipe.vae, few, *sizes, refine=REFINE))
            findings["vae"]["refined_clips"] = len(few)
        if chosen.keyframe_clips and pipe.config.dit.condition_channels:
            asked = [(scene, told.text) for scene, told in prompts[: chosen.keyframe_clips]]
            kept = keyframe_psnr(pipe, asked, seed, **options)
            findings["keyframes"] = {"clips": len(asked)} | {k: _mean(v) for k, v in kept.items()}
        _write(chosen.out, findings, pictures)
    except (TinywanError, OSError) as error:
        print(f"tinywan.evaluate: {error}", file=sys.stderr)
        return 2
    print(table(findings))
    print(f"wrote {chosen.out / 'evaluation.json'}, evaluation.md and evaluation.png")
    return 0


def _write(
    folder: Path, findings: dict[str, Any], pictures: Sequence[npt.NDArray[np.uint8]]
) -> None:
    """Write each file whole or not at all."""
    signs = {True: "+", False: "-", None: ""}
    captions = [
        f"{record['prompt']} {signs[record['garment_color_right']]}{signs[record['place_right']]}"
        for record in findings["prompts"]
    ]
    for name, text in (
        ("evaluation.json", json.dumps(_known(findings), ensure_ascii=False, indent=1)),
        ("evaluation.md", markdown(findings)),
    ):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    _write_sheet(folder / "evaluation.png", pictures, captions)


def _known(value: Any) -> Any:
    """The same with None where a number is not known: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_sheet(
    path: Path, pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str]
) -> None:
    part = path.with_suffix(".png.part")
    picture_sheet(pictures, captions, columns=6, scale=2).save(part, format="PNG")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
