"""From a phrase of the prompt to its tokens, by character offsets; never a guess.

A token that straddles a phrase's edge counts by the fraction of its characters inside.
Words are split at spaces and punctuation, and runs of Chinese characters by jieba.
"""

from __future__ import annotations

import difflib
import functools
import html
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from wanviz.errors import PhraseError

# CJK ideographs: the base block, extension A, the compatibility block, and the planes above
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_RUN = re.compile(f"[{_HAN}]+")
_OTHER_RUN = re.compile(rf"[^\W_{_HAN}](?:['’\-]?[^\W{_HAN}])*")
# jieba reads these as one verb; the thing held has a place in the video of its own
_VERB_AND_THING = ("撑伞", "打伞")


@dataclass(frozen=True)
class Token:
    """One token of the prompt."""

    text: str  # the characters it stands for
    span: tuple[int, int]  # characters [start, stop) of the prompt, without white space


@dataclass(frozen=True)
class Word:
    """One word of the prompt."""

    text: str
    span: tuple[int, int]  # characters [start, stop) of the prompt
    tokens: tuple[int, ...]  # indices of the tokens that touch it


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its tokens, as the text encoder saw them."""

    text: str
    tokens: tuple[Token, ...]  # the prompt's own; </s> and padding follow them
    truncated_at: int | None = None  # first character that the model never saw
    omitted: tuple[Token, ...] = ()  # tokens that a capture was not asked to keep
    columns: tuple[int, ...] | None = None  # which keys `tokens` are; None where nothing is omitted

    @property
    def num_tokens(self) -> int:
        """The prompt's own tokens, with those that were not kept."""
        return len(self.tokens) + len(self.omitted)


def encoded_prompt(
    text: str, offsets: tuple[tuple[int, int], ...], truncated_at: int | None
) -> EncodedPrompt:
    """Tokens with white space stripped from their spans.

    Args:
        text: the prompt.
        offsets: characters [start, stop) of each of the prompt's own tokens.
        truncated_at: first character that was cut off, or None.

    Returns:
        The prompt with its tokens.
    """
    tokens = []
    for start, stop in offsets:
        piece = text[start:stop]
        start += len(piece) - len(piece.lstrip())
        piece = piece.strip()
        tokens.append(Token(text=piece, span=(start, start + len(piece))))
    return EncodedPrompt(text=text, tokens=tuple(tokens), truncated_at=truncated_at)


def only_words(
    encoded: EncodedPrompt, phrases: tuple[str, ...], absent: Literal["error", "ignore"] = "error"
) -> EncodedPrompt:
    """The same prompt, of which only the tokens of some phrases are to be kept.

    Args:
        encoded: the prompt.
        phrases: characters of the prompt; all places where one occurs are kept.
        absent: what to do about a phrase that does not occur.

    Returns:
        The prompt with its other tokens in `omitted`.

    Raises:
        PhraseError: a phrase is absent, or was cut off.
    """
    kept: set[int] = set()
    for phrase in phrases:
        try:
            spans = phrase_spans(encoded, phrase, "all")
        except PhraseError:
            if absent == "error":
                raise
        else:
            kept.update(index for index, _ in token_weights(encoded, spans))
    if len(kept) == len(encoded.tokens):
        return encoded
    columns = tuple(sorted(kept))
    return replace(
        encoded,
        tokens=tuple(encoded.tokens[i] for i in columns),
        omitted=tuple(token for i, token in enumerate(encoded.tokens) if i not in kept),
        columns=columns,
    )


def split_words(encoded: EncodedPrompt) -> tuple[Word, ...]:
    """The words of a prompt that the model saw and that were kept, in their order."""
    words = []
    gone = {char for token in encoded.omitted for char in range(*token.span)}
    for start, stop in _word_spans(encoded.text):
        if encoded.truncated_at is not None and stop > encoded.truncated_at:
            break
        chars = set(range(start, stop))
        if chars & gone:
            continue
        touched = tuple(i for i, t in enumerate(encoded.tokens) if chars & set(range(*t.span)))
        words.append(Word(text=encoded.text[start:stop], span=(start, stop), tokens=touched))
    return tuple(words)


def _word_spans(text: str) -> Iterator[tuple[int, int]]:
    spans = list(_spelled(text))
    for run in _HAN_RUN.finditer(text):
        spans += [(run.start() + a, run.start() + b) for a, b in _segment()(run.group())]
    yield from sorted(spans)


def _spelled(text: str) -> Iterator[tuple[int, int]]:
    """Words of letters and digits; accents and vowel signs belong to the letter before them."""
    start = stop = 0
    for match in _OTHER_RUN.finditer(text):
        if not (match.start() == stop > 0 and _is_mark(text[stop - 1])):
            if stop > start:
                yield start, stop
            start = match.start()
        stop = match.end()
        while stop < len(text) and _is_mark(text[stop]):
            stop += 1
    if stop > start:
        yield start, stop


def _is_mark(character: str) -> bool:
    """Whether a character only changes the letter before it: accents, vowel signs, joiners."""
    return unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


@functools.cache
def _segment() -> Callable[[str], list[tuple[int, int]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's own, about pkg_resources and escapes
        import jieba

    jieba.setLogLevel(logging.WARNING)
    tokenizer: Any = jieba.Tokenizer()  # our own: the user's jieba keeps its dictionary
    tokenizer.initialize()
    for word in _VERB_AND_THING:
        tokenizer.FREQ[word] = 0

    def spans(run: str) -> list[tuple[int, int]]:
        # HMM off: words of the dictionary only, so that the split does not surprise
        return [(start, stop) for _, start, stop in tokenizer.tokenize(run, HMM=False)]

    return spans


def find_phrase(encoded: EncodedPrompt, phrase: str) -> tuple[tuple[int, int], ...]:
    """Every place where a phrase occurs, as characters [start, stop).

    "rain" is not found inside "rainy"; 猫 is found inside 白猫.
    """
    text, found, start = encoded.text, [], 0
    while phrase and (start := text.find(phrase, start)) >= 0:
        stop = start + len(phrase)
        if not _glued(text, start) and not _glued(text, stop):
            found.append((start, stop))
        start += 1
    return tuple(found)


def _cleaned(phrase: str) -> str:
    """A phrase as Wan cleans its prompts: odd characters repaired, white space collapsed."""
    try:
        import ftfy
    except ImportError:  # diffusers cleans without it as well where it is missing
        repaired = phrase
    else:
        repaired = ftfy.fix_text(phrase)
    return " ".join(html.unescape(html.unescape(repaired)).split())


def _glued(text: str, edge: int) -> bool:
    """Whether the characters on both sides of an edge belong to one spelled word."""
    return 0 < edge < len(text) and all(
        (c.isalnum() or _is_mark(c)) and not _HAN_RUN.match(c) for c in text[edge - 1 : edge + 1]
    )


def phrase_spans(
    encoded: EncodedPrompt, phrase: str | Word, occurrence: int | Literal["all"] | None = None
) -> tuple[tuple[int, int], ...]:
    """The one place that is meant, or all of them for occurrence="all".

    Args:
        encoded: the prompt.
        phrase: characters of the prompt, or one of its words.
        occurrence: which one, from 1, where a phrase occurs more than once; or "all".

    Returns:
        Character spans [start, stop).

    Raises:
        PhraseError: the phrase is absent, ambiguous, or was cut off.
    """
    if isinstance(phrase, Word):
        if encoded.text[slice(*phrase.span)] != phrase.text:
            raise PhraseError(
                f"the word {phrase.text!r} at characters {phrase.span} belongs to another prompt; "
                f"this one is {encoded.text!r}"
            )
        return _seen(encoded, (phrase.span,))
    if not isinstance(phrase, str) or not phrase.strip():
        raise PhraseError(f"phrase={phrase!r} is empty: give characters of {encoded.text!r}")
    phrase = phrase.strip()
    spans = find_phrase(encoded, phrase) or find_phrase(encoded, _cleaned(phrase))
    if not spans:
        raise PhraseError(_absent(encoded, phrase))
    if occurrence == "all":
        return _seen(encoded, spans)
    if occurrence is None:
        if len(spans) > 1:
            places = "; ".join(f"{i}: {_context(encoded, s)}" for i, s in enumerate(spans, 1))
            raise PhraseError(
                f"{phrase!r} occurs {len(spans)} times in the prompt: {places}. "
                f"Say which: occurrence=1 to {len(spans)}, or occurrence='all'"
            )
        return _seen(encoded, spans)
    if isinstance(occurrence, bool) or not isinstance(occurrence, int):
        raise PhraseError(f"occurrence={occurrence!r}: use a number from 1, or 'all'")
    if not 1 <= occurrence <= len(spans):
        raise PhraseError(
            f"occurrence={occurrence} of {phrase!r}: the prompt has {len(spans)}, counted from 1"
        )
    return _seen(encoded, (spans[occurrence - 1],))


def _seen(
    encoded: EncodedPrompt, spans: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    cut = encoded.truncated_at
    for start, stop in spans:
        if cut is not None and stop > cut:
            raise PhraseError(
                f"{encoded.text[start:stop]!r} stands at characters {start} to {stop}, but the "
                f"model saw only the first {cut} characters of the prompt: shorten the prompt"
            )
    return spans


def _context(encoded: EncodedPrompt, span: tuple[int, int]) -> str:
    start, stop = span
    text = encoded.text
    before = ("…" if start > 8 else "") + text[max(0, start - 8) : start]
    after = text[stop : stop + 8] + ("…" if stop + 8 < len(text) else "")
    return f"{before}[{text[start:stop]}]{after}"


def _absent(encoded: EncodedPrompt, phrase: str) -> str:
    words = list(dict.fromkeys(word.text for word in split_words(encoded)))
    if not words:
        return f"{phrase!r} is not in the prompt {encoded.text!r}, which has no words"
    folded = {word.casefold(): word for word in reversed(words)}
    near = [folded[w] for w in difflib.get_close_matches(phrase.casefold(), list(folded), n=3)]
    holding = [w for w in words if phrase.casefold() in w.casefold() and w not in near]
    candidates = near + holding or words[:24]
    label = "nearest" if near or holding else "its words"
    return f"{phrase!r} is not in the prompt; {label}: " + ", ".join(map(repr, candidates))


def token_weights(
    encoded: EncodedPrompt, spans: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, float], ...]:
    """The tokens of some spans: (index, fraction of the token's characters inside)."""
    inside = {char for span in spans for char in range(*span)}
    shown = ", ".join(repr(encoded.text[slice(*span)]) for span in spans)
    if any(inside & set(range(*token.span)) for token in encoded.omitted):
        kept = ", ".join(repr(token.text) for token in encoded.tokens)
        raise PhraseError(
            f"{shown} was not kept: this capture was asked for the tokens {kept} alone; name it in words=[…]"
        )
    weights = []
    for index, token in enumerate(encoded.tokens):
        chars = range(*token.span)
        if shared := sum(char in inside for char in chars):
            weights.append((index, shared / len(chars)))
    if not weights:
        raise PhraseError(
            f"no token of the prompt stands for {shown}; the tokens are "
            + ", ".join(repr(token.text) for token in encoded.tokens[:24])
        )
    return tuple(weights)
