"""A content filter: a list of phrases for prompts, and a judge who looks at the video.

A list alone is easily passed by: another word, a picture as keyframe. What counts is what the video shows, so the frames are
looked at as well, as diffusers' safety checkers look at pictures; here by a classifier of the user's choice.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.adapters import adapter_for
from wanviz.delivery.subtitles import as_bytes
from wanviz.errors import ContentError, OptionError

BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs that show nothing
Looks = Callable[[NDArray[np.float32]], Mapping[str, float]]


@dataclass(frozen=True)
class Finding:
    """Something that is to be kept out.

    Attributes:
        label: what it is, as the filter names it.
        text: characters of the prompt; "" where a video shows it.
        span: of the prompt, [start, stop); None where a video shows it.
        score: of the classifier; None where a prompt says it.
        video: which prompt, or video, of the call, from 0.
    """

    label: str
    text: str = ""
    span: tuple[int, int] | None = None
    score: float | None = None
    video: int = 0

    def __str__(self) -> str:
        if self.score is None:
            return f"{self.label} (prompt {self.video} says {self.text!r})"
        return f"{self.label} (video {self.video} shows it, score {self.score:.2f})"


class ContentFilter:
    """Keeps content out: refuses prompts that ask for it, and videos that show it.

    Phrases are found whatever their case, width, accents and invisible characters; "rain" is not found in "rainy", 狗 is found in 小狗. Other
    words for the same thing, and other spellings, are not.

    Args:
        phrases: by label, how prompts may say it; a label without phrases is looked for in videos alone, so it needs a classifier.
        allowed: phrases that are harmless though they hold one of these, e.g. 热狗 for 狗.
        looks: given float frames `[F, H, W, 3]` in [0, 1], tells a score by label; labels of no concern are passed over.
        threshold: least score that counts.

    Raises:
        OptionError: phrases that are empty, a label that nothing looks for, or a threshold that is no number.
    """

    def __init__(
        self,
        phrases: Mapping[str, Iterable[str]],
        *,
        allowed: Iterable[str] = (),
        looks: Looks | None = None,
        threshold: float = 0.5,
    ) -> None:
        if not isinstance(phrases, Mapping) or not phrases:
            raise OptionError(
                f"phrases={phrases!r:.60}: say what to keep out, by label, e.g. {{'dog': ['dog', '狗']}}"
            )
        least: Any = threshold
        if not isinstance(least, Real) or not np.isfinite(float(least)):
            raise OptionError(f"threshold={threshold!r}: use a finite number, e.g. 0.5")
        self.phrases = {label: _phrases(label, given) for label, given in phrases.items()}
        self.allowed = _phrases("allowed", allowed)
        self.looks = looks
        self.threshold = float(threshold)
        for label, given in self.phrases.items():
            if not given and looks is None:
                raise OptionError(
                    f"nothing looks for {label!r}: give it phrases, or a classifier, looks=…"
                )

    def prompt(self, text: str, number: int = 0) -> tuple[Finding, ...]:
        """What a prompt says of what is to be kept out.

        Args:
            text: a prompt, or a negative one.
            number: of the prompt, to be named.

        Returns:
            Findings in the order of the text.

        Raises:
            OptionError: it is no text.
        """
        if not isinstance(text, str):
            raise OptionError(f"a prompt is a text; this is {text!r:.60}")
        found = set()
        for gap in ("", " "):  # an invisible character may split a word, or stand between two
            plain, places = _plain(text, gap)
            harmless = [span for phrase in self.allowed for span in _occurrences(plain, phrase)]
            for label, phrases in self.phrases.items():
                for phrase in phrases:
                    for a, b in _occurrences(plain, phrase):
                        if not any(start <= a and b <= stop for start, stop in harmless):
                            span = places[a], places[b - 1] + 1
                            found.add(Finding(label, text[slice(*span)], span, video=number))
        return tuple(sorted(found, key=lambda finding: finding.span or (0, 0)))

    def video(self, frames: NDArray[Any], number: int = 0) -> tuple[Finding, ...]:
        """What a video shows of what is to be kept out.

        Args:
            frames: `[F, H, W, 3]`, uint8, or float in [0, 1].
            number: of the video, to be named.

        Returns:
            Findings, the clearest first.

        Raises:
            OptionError: the filter has no classifier, it gave no score, or this is no video.
        """
        if self.looks is None:
            raise OptionError("this filter cannot look at videos: give it a classifier, looks=…")
        as_bytes(frames)  # refuses what is no video
        pixels = np.asarray(frames)
        pixels = pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)
        scores = self.looks(pixels)
        if not isinstance(scores, Mapping):
            raise OptionError(
                f"the classifier gave {scores!r:.60}: it has to give a score by label, e.g. {{'dog': 0.1}}"
            )
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
        texts = prompt if isinstance(prompt, str) else list(prompt or ())
        told = [texts] if isinstance(texts, str) else texts
        found = [f for number, text in enumerate(told) for f in self.prompt(text, number)]
        _refuse(found, "nothing was drawn")
        given = {} if asked.get("prompt_embeds") is not None else {"prompt": texts}
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
    if not isinstance(given, Iterable):
        raise OptionError(f"the phrases of {label!r} are {given!r:.60}: give a list of texts")
    found = (given,) if isinstance(given, str) else tuple(given)
    for phrase in found:
        if not isinstance(phrase, str) or not _plain(phrase)[0].strip():
            raise OptionError(f"the phrase {phrase!r} of {label!r} is empty, or no text")
    return tuple(_plain(phrase)[0].strip() for phrase in found)


def _plain(text: str, gap: str = "") -> tuple[str, list[int]]:
    """The text without case, width and accents, and whence each character comes; `gap` for what cannot be seen."""
    plain, places = list[str](), list[int]()
    for place, character in enumerate(text):
        kind = unicodedata.category(character)
        hidden = (
            kind in ("Cf", "Cc", "Mn", "Me") or character in BLANK
        ) and not character.isspace()
        accent = unicodedata.combining(character) > 0
        whole = "" if accent else gap if hidden else unicodedata.normalize("NFKD", character)
        for one in whole.casefold():
            one = " " if one.isspace() else one
            if unicodedata.combining(one) or (one == " " and plain and plain[-1] == " "):
                continue
            plain.append(one)
            places.append(place)
    return "".join(plain), places


def _occurrences(plain: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Where a phrase stands, [start, stop), and is no part of a longer spelled word; a digit is none."""
    start = plain.find(phrase)
    while start >= 0:
        stop = start + len(phrase)
        if not (_glued(plain, start) or _glued(plain, stop)):
            yield start, stop
        start = plain.find(phrase, start + 1)


def _glued(plain: str, edge: int) -> bool:
    """Whether letters of one spelled word stand on both sides of an edge; Chinese words are not spelled."""
    return 0 < edge < len(plain) and all(
        one.isalpha() and not "\u3040" <= one <= "\u9fff" and not one >= "\U00020000"
        for one in plain[edge - 1 : edge + 1]
    )
