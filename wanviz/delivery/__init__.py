"""What stands between a model and those whom it serves: encodings kept, content kept out, subtitles, video files.

How strongly a word counts is steered by `wanviz.interventions.reweight`; negative prompts and keyframes are arguments of
the pipeline itself.
"""

from wanviz.delivery.content import ContentFilter, Finding
from wanviz.delivery.prompts import PromptCache
from wanviz.delivery.subtitles import Cue, draw_subtitles, passages, write_subtitles
from wanviz.delivery.video import write_video

__all__ = [
    "ContentFilter",
    "Cue",
    "Finding",
    "PromptCache",
    "draw_subtitles",
    "passages",
    "write_subtitles",
    "write_video",
]
