"""Are attributions right? `python -m wanviz.evaluation --out DIR`; under torchrun the clips are shared out.

Runs every method on rendered clips, whose words have masks, then on clips that the model draws, and plays the pointing game
on these with the attention of their own generation. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tinywan import TextToVideoPipeline, TinywanError

from wanviz.errors import OptionError, WanvizError
from wanviz.evaluation.heads import choose_heads
from wanviz.evaluation.pointing import Pointing, evaluate_pointing
from wanviz.evaluation.run import Plan, read, run
from wanviz.evaluation.table import against, markdown, write
from wanviz.evaluation.truth import generated, rendered


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the evaluation from the command line.

    Args:
        arguments: words after the command; None takes the process's own.

    Returns:
        0; 2 for options that cannot work; 130 where it was stopped.
    """
    parser = argparse.ArgumentParser(prog="python -m wanviz.evaluation", description=__doc__)
    parser.add_argument(
        "--clips",
        type=int,
        default=270,
        help="rendered clips, for all methods; three of four are scored",
    )
    parser.add_argument("--dear", type=int, default=54, help="of these, for gradients and Shapley")
    parser.add_argument("--random", type=int, default=10, help="of these, for random weights")
    parser.add_argument("--drawn", type=int, default=0, help="clips that the model draws, for all")
    parser.add_argument("--prompts", type=int, default=60, help="for the pointing game; 0 is none")
    parser.add_argument("--seed", type=int, default=5, help="of rendered clips")
    parser.add_argument("--checkpoint", type=Path, help="folder; the shipped one by default")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    options = parser.parse_args(arguments)
    rank, world = (
        int(os.environ.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    try:
        for name in ("clips", "dear", "random", "drawn", "prompts", "seed"):
            if getattr(options, name) < 0:
                raise OptionError(f"--{name} {getattr(options, name)}: use 0 or more")
        options.out.mkdir(parents=True, exist_ok=True)
        pipe = TextToVideoPipeline.from_pretrained(options.checkpoint, options.device)
        _evaluate(pipe, options, rank, world)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except (TinywanError, WanvizError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(pipe: TextToVideoPipeline, options: Any, rank: int, world: int) -> None:
    folder: Path = options.out
    size, frames = pipe.config.height, pipe.config.num_frames
    if options.clips or options.drawn:
        heads = _heads(pipe, folder / "heads.json")
    for name, count, sample in (
        ("rendered", options.clips, lambda i: rendered(i, options.seed, "held_out", frames, size)),
        ("drawn", options.drawn, partial(generated, pipe, count=options.drawn, seed=0)),
    ):
        if not count:
            continue
        whole = name == "rendered"
        plan = Plan(count, options.dear * whole, options.random * whole, options.seed, heads)
        run(pipe, plan, folder / f"{name}.{rank}.jsonl", sample, rank, world)
        if rank == 0:
            told = records(folder, name)
            if len(told) < count:
                print(
                    f"{name}: {len(told)} of {count} clips; call again when all processes are done"
                )
            write(told, folder / name)
            print(markdown(told))
            better = {
                m: str(against(told, "attention_layers", "attention", m))
                for m in ("overlap", "precision")
            }
            print(f"attention_layers less attention, in points: {better}\n")
    if options.prompts and rank == 0:
        found, clips = evaluate_pointing(pipe, options.prompts)
        print(pointing_table(found))
        content = {"summary": {name: asdict(p) for name, p in found.items()}, "clips": clips}
        path = folder / "pointing.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"wrote {path}")


def _heads(pipe: TextToVideoPipeline, path: Path) -> tuple[tuple[int, int], ...]:
    """The heads of `attention_heads`: chosen once, so that all clips are judged with the same ones."""
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(choose_heads(pipe)))
        draft.replace(path)
    return tuple((layer, head) for layer, head in json.loads(path.read_text()))


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """All clips that the processes of a run have written so far, each once."""
    by_clip = {r["clip"]: r for path in sorted(folder.glob(f"{name}.*.jsonl")) for r in read(path)}
    return [by_clip[clip] for clip in sorted(by_clip)]


def pointing_table(found: dict[str, Pointing]) -> str:
    """The pointing game on drawn clips, for the terminal."""
    heads = f"{'object':10}{'frames':>8}{'missing':>9}{'peak of map':>13}{'centre':>9}{'area':>8}"
    lines = [f"{heads}{'mistaken clips':>16}"]
    for name, p in found.items():
        shares = f"{p.peak:13.1%}{p.centre:9.1%}{p.area:8.1%}" if p.frames else "  not in any frame"
        lines.append(f"{name:10}{p.frames:8}{p.missing:9}{shares}{p.mistaken:16}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
