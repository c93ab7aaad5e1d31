"""`python -m tinywan.theatre`: look at the training world, and count how balanced it is."""

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np

from tinywan.errors import ConfigError
from tinywan.theatre.caption import caption
from tinywan.theatre.census import report
from tinywan.theatre.scene import World, sample_scene
from tinywan.theatre.sheet import contact_sheet


def main() -> int:
    """Write a contact sheet of sampled scenes, and print their captions and the counts of both worlds."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.theatre", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("theatre.png"), help="the sheet to write")
    parser.add_argument("--count", type=int, default=24, help="scenes on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("train", "held_out", "all"), default="all")
    parser.add_argument(
        "--world", choices=get_args(World), default="whole", help="of the scenes on the sheet"
    )
    parser.add_argument(
        "--language", choices=("en", "zh"), default="en", help="of the captions on the sheet"
    )
    parser.add_argument("--sample", type=int, default=5000, help="scenes to count factors over")
    options = parser.parse_args()
    try:
        if options.seed < 0:
            raise ConfigError(f"--seed {options.seed} cannot seed a sample: use 0 or more")
        if options.sample < 1:
            raise ConfigError(f"--sample {options.sample} leaves nothing to count: use 1 or more")
        rng = np.random.default_rng(options.seed)
        scenes = [sample_scene(rng, options.split, options.world) for _ in range(options.count)]
        still = options.world == "first"  # a moving camera is seen in several frames
        sheet = contact_sheet(
            scenes,
            options.language,
            columns=4 if still else 2,
            frames=(8,) if still else (0, 8, 16),
            scale=3 if still else 2,
        )
        sheet.save(options.out)
    except (ConfigError, OSError) as error:
        print(f"tinywan.theatre: {error}", file=sys.stderr)
        return 2
    for scene in scenes:
        print(caption(scene, "zh").text, "|", caption(scene, "en").text)
    for world in get_args(World):
        rng = np.random.default_rng(options.seed)
        sample = [sample_scene(rng, options.split, world) for _ in range(options.sample)]
        print(f"\nThe {world} world: {report(sample)}")
    print(f"\nwrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
