"""`python -m tinywan.theatre`: look at the training world, and count how balanced it is."""

import argparse
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np

from tinywan.errors import ConfigError
from tinywan.theatre.caption import caption
from tinywan.theatre.scene import Scene, is_held_out, sample_scene
from tinywan.theatre.sheet import contact_sheet


def main() -> int:
    """Write a contact sheet of sampled scenes, and print their captions and factor counts."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.theatre", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("theatre.png"), help="the sheet to write")
    parser.add_argument("--count", type=int, default=24, help="scenes on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("train", "held_out", "all"), default="all")
    parser.add_argument(
        "--language", choices=("en", "zh"), default="en", help="of the captions on the sheet"
    )
    parser.add_argument("--sample", type=int, default=5000, help="scenes to count factors over")
    options = parser.parse_args()
    try:
        if options.seed < 0:
            raise ConfigError(f"--seed {options.seed} cannot seed a sample: use 0 or more")
        rng = np.random.default_rng(options.seed)
        scenes = [
            sample_scene(rng, options.split) for _ in range(max(options.count, options.sample))
        ]
        sheet = contact_sheet(scenes[: options.count], options.language)
        sheet.save(options.out)
    except (ConfigError, OSError) as error:
        print(f"tinywan.theatre: {error}", file=sys.stderr)
        return 2
    for scene in scenes[: options.count]:
        print(caption(scene, "zh").text, "|", caption(scene, "en").text)
    print(f"\nfactors of {len(scenes)} scenes ({sum(map(is_held_out, scenes))} held out):")
    for field in fields(Scene)[:-1]:
        counts = Counter(getattr(scene, field.name) for scene in scenes)
        shares = ", ".join(
            f"{name} {count / len(scenes):.1%}" for name, count in counts.most_common()
        )
        print(f"  {field.name:14} {shares}")
    print(f"\nwrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
