"""Changing a run: words, heads, frames, experts and activations, each as a context manager that leaves nothing behind.

>>> with reweight(pipe, prompt, {"umbrella": 0}):
...     pipe(prompt, seed=7)

Hooks are in place inside the block and gone afterwards, also when the model or the user raises. Interventions nest,
among each other and with `capture`, which sees the changed model where it is entered last; what `reweight` and
`reweight_frames` add inside the softmax is in its effects, not in the maps of the same layer, which are of q and k.
"""

from wanviz.interventions.compare import Comparison, compare
from wanviz.interventions.experts import force_expert, force_noise_expert, scale_experts
from wanviz.interventions.frames import reweight_frames
from wanviz.interventions.heads import scale_heads
from wanviz.interventions.recording import Recording, inject, record
from wanviz.interventions.words import reweight

__all__ = [
    "Comparison",
    "Recording",
    "compare",
    "force_expert",
    "force_noise_expert",
    "inject",
    "record",
    "reweight",
    "reweight_frames",
    "scale_experts",
    "scale_heads",
]
