"""Average checkpoints of one model: `python -m tinywan.average A B --out C`.

Runs that went on from the same weights end in different places of the same valley, each off by the noise of
its few clips, and their mean is often better than any of them. Source: model soups, Wortsman et al.
2022, arXiv 2203.05482.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tinywan.errors import ConfigError, TinywanError
from tinywan.pipeline import TextToVideoPipeline

PARTS = "text_encoder", "vae", "transformer", "transformer_2"


def average(pipes: Sequence[TextToVideoPipeline]) -> TextToVideoPipeline:
    """The mean of the weights of several pipelines, part by part.

    Args:
        pipes: two or more, of the same sizes and with the same tokens, all with two noise experts or all with one
            denoiser for all noise levels; they stay as they are.

    Returns:
        A pipeline on the CPU in float32; what is the same in all of them is the same in it.

    Raises:
        ConfigError: for fewer than two, or where sizes, tokens or the number of noise experts differ.
    """
    if len(pipes) < 2:
        raise ConfigError(f"{len(pipes)} checkpoint has no mean but itself: name two or more")
    first = pipes[0]
    for number, pipe in enumerate(pipes[1:], start=2):
        for what, mine, theirs in (
            ("sizes or settings", pipe.config, first.config),
            ("tokens", _pieces(pipe), _pieces(first)),
            ("numbers of noise experts", _is_divided(pipe), _is_divided(first)),
        ):
            if mine != theirs:
                raise ConfigError(
                    f"checkpoint {number} has other {what} than the first: average what went on from the same weights"
                )
    mean = copy.deepcopy(first).to("cpu", torch.float32)
    for name in PARTS:
        states = [getattr(pipe, name).state_dict() for pipe in pipes]
        getattr(mean, name).load_state_dict(
            {
                key: torch.stack([state[key].double().cpu() for state in states]).mean(0)
                for key in states[0]
            }
        )
    return mean


def _pieces(pipe: TextToVideoPipeline) -> list[str]:
    return [pipe.tokenizer.piece(number) for number in range(pipe.tokenizer.vocab_size)]


def _is_divided(pipe: TextToVideoPipeline) -> bool:
    return pipe.transformer_2 is not pipe.transformer


def main(arguments: Sequence[str] | None = None) -> int:
    """Average checkpoints and write the result."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.average", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders, two or more")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    try:
        average(
            [TextToVideoPipeline.from_pretrained(p) for p in options.checkpoints]
        ).save_pretrained(options.out)
    except (TinywanError, OSError) as error:
        print(f"tinywan.average: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
