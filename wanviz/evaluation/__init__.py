"""How right attributions are: on rendered clips, where the mask of every word is known, and on clips that the model drew."""

from wanviz.evaluation.pointing import (
    Pointing,
    belongs_to_another,
    evaluate_pointing,
    peak_pixels,
    point,
)

__all__ = ["Pointing", "belongs_to_another", "evaluate_pointing", "peak_pixels", "point"]
