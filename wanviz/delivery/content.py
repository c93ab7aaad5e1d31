"""A content filter: a list of phrases for prompts, and a judge who looks at the video.

A list alone is easily passed by: another word, a picture as keyframe. What counts is what the video shows, so the frames are
looked at as well, as diffusers' safety checkers look at pictures; here by a classifier of the user's choice.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.adapters import adapter_for
from wanviz.errors import ContentError, OptionError
from wanviz.words import EncodedPrompt, find_phrase

Looks = Callable[[NDArray[np.float32]], Mapping[str, float]]


@dataclass(frozen=True)
class Finding:
    """Something that is to be kept out.

    Attributes:
        label: what it is, as the filter names it.
        text: characters of the prompt; "" where a video shows it.
        span: of the prompt, [start, stop); None where a video shows it.
        score: of the classifier; None where a prompt says it.
        video: which video of the call, from 0.
    """

    label: str
    text: str = ""
    span: tuple[int, int] | None = None
    score: float | None = None
    video: int = 0

    def __str__(self) -> str:
        if self.score is None:
            return f"{self.label} (the prompt says {self.text!r})"
        return f"{self.label} (video {self.video} shows it, score {self.score:.2f})"


class ContentFilter:
    """Keeps content out: refuses prompts that ask for it, and videos that show it.

    Phrases are found whatever their case, width and invisible characters; "rain" is not found in "rainy", 狗 is found in 小狗. Other
    words for the same thing, and other spellings, are not.

    Args:
        phrases: by label, how prompts may say it; a label without phrases is looked for in videos alone.
        allowed: phrases that are harmless though they hold one of these, e.g. 热狗 for 狗.
        looks: given float frames `[F, H, W, 3]` in [0, 1], tells a score by label; labels of no concern are passed over.
        threshold: least score that counts.

    Raises:
        OptionError: phrases that are empty, or a threshold that is no number.
    """

    def __init__(
        self,
        phrases: Mapping[str, Iterable[str]],
        *,
        allowed: Iterable[str] = (),
        looks: Looks | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.phrases = {label: _phrases(label, given) for label, given in phrases.items()}
        self.allowed = _phrases("allowed", allowed)
        self.looks = looks
        self.threshold = float(threshold)
        if not self.phrases:
            raise OptionError("phrases is empty: say what to keep out, e.g. {'dog': ['dog', '狗']}")
        if not np.isfinite(self.threshold):
            raise OptionError(f"threshold={threshold}: use a finite number, e.g. 0.5")

    def prompt(self, text: str) -> tuple[Finding, ...]:
        """What a prompt says of what is to be kept out.

        Args:
            text: a prompt, or a negative one.

        Returns:
            Findings in the order of the text.
        """
        plain, places = _plain(text)
        readable = EncodedPrompt(plain, ())
        harmless = [span for phrase in self.allowed for span in find_phrase(readable, phrase)]
        found = []
        for label, phrases in self.phrases.items():
            for phrase in phrases:
                for a, b in find_phrase(readable, phrase):
                    if not any(start <= a and b <= stop for start, stop in harmless):
                        span = places[a], places[b - 1] + 1
                        found.append(Finding(label, text[slice(*span)], span))
        return tuple(sorted(set(found), key=lambda finding: finding.span or (0, 0)))

    def video(self, frames: NDArray[Any], number: int = 0) -> tuple[Finding, ...]:
        """What a video shows of what is to be kept out.

        Args:
            frames: `[F, H, W, 3]`, uint8, or float in [0, 1].
            number: of the video, to be named.

        Returns:
            Findings, the clearest first.

        Raises:
            OptionError: the filter has no classifier, or it gave no score.
        """
        if self.looks is None:
            raise OptionError("this filter cannot look at videos: give it a classifier, looks=…")
        pixels = np.asarray(frames)
        if pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise OptionError(f"a video is [F, H, W, 3]; this is {list(pixels.shape)}")
        pixels = pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)
        scores = self.looks(pixels)
        unknown = [label for label in self.phrases if not np.isfinite(scores.get(label, np.nan))]
        if unknown:
            raise OptionError(
                f"the classifier gave no score for {unknown[0]!r}, only for {', '.join(map(repr, scores)) or 'nothing'}: what it "
                "does not know it cannot keep out"
            )
        seen = [
            Finding(label, score=float(scores[label]), video=number)
            for label in self.phrases
            if scores[label] >= self.threshold
        ]
        return tuple(sorted(seen, key=lambda finding: -(finding.score or 0)))

    def draw(self, pipe: Any, prompt: str | list[str], **asked: Any) -> Any:
        """Call a pipeline: its prompt is read before, its video looked at behind.

        Args:
            pipe: a tinywan pipeline, or a WanPipeline of diffusers.
            prompt: one, or one for each video. Beside prompt_embeds it is read here and not given to the pipeline: that these
                are its embeddings is up to the caller.
            asked: more arguments of the call; the output has to be pixels ("np").

        Returns:
            What the pipeline returns.

        Raises:
            ContentError: something was found; what was drawn is not handed out.
            OptionError: the output is no pixels, so that it cannot be looked at.
        """
        adapter_for(pipe)
        if self.looks is not None and asked.get("output_type", "np") != "np":
            raise OptionError(
                f"output_type={asked['output_type']!r}: a filter looks at pixels, 'np'"
            )
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        _refuse([finding for text in texts for finding in self.prompt(text)], "nothing was drawn")
        given = {} if asked.get("prompt_embeds") is not None else {"prompt": prompt}
        output = pipe(**given, **asked)
        if self.looks is not None:
            videos = output[0] if isinstance(output, tuple) else output.frames
            found = [f for number, video in enumerate(videos) for f in self.video(video, number)]
            _refuse(found, "the video is not handed out")
        return output


def _refuse(found: list[Finding], so: str) -> None:
    if found:
        told = ", ".join(str(finding) for finding in dict.fromkeys(found))
        raise ContentError(f"kept out: {told}; {so}", tuple(found))


def _phrases(label: str, given: Iterable[str]) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given)
    for phrase in found:
        if not isinstance(phrase, str) or not _plain(phrase)[0].strip():
            raise OptionError(f"the phrase {phrase!r} of {label!r} is empty, or no text")
    return tuple(_plain(phrase)[0].strip() for phrase in found)


def _plain(text: str) -> tuple[str, list[int]]:
    """The text without case, width, accents put together and invisible characters, and whence each character comes."""
    plain, places = list[str](), list[int]()
    for place, character in enumerate(text):
        if unicodedata.category(character) in ("Cf", "Cc") and not character.isspace():
            continue
        for one in unicodedata.normalize("NFKC", character).casefold():
            one = " " if one.isspace() else one
            if one == " " and plain and plain[-1] == " ":
                continue
            plain.append(one)
            places.append(place)
    return "".join(plain), places
