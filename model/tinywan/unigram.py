"""How text is read, and how the pieces of a unigram tokenizer are learnt, alike on every run.

The trainer of Hugging Face `tokenizers` gave other pieces on every run, and on a few hundred
captions it merged whole phrases. This one is the same idea (Kudo 2018, arXiv 1804.10959, section
3.2: EM over all segmentations, then pruning) in plain Python, with two rules that keep words apart:
a Chinese piece has at most two characters, and no piece reaches across a word that was named.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tinywan.errors import ConfigError

SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# What has a piece in every vocabulary; full-width forms are read as ASCII.
COMMON_CHARACTERS = (
    "▁" + string.ascii_lowercase + string.digits + string.punctuation + "。、—“”‘’《》"
)

MAX_HAN_LENGTH = 2  # characters: most Chinese words have two; longer ones become two tokens
MAX_LENGTH = 16  # characters of any other piece, the space mark included
EM_ROUNDS = 4  # before and after each pruning; the pieces of captions settle in three
HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def text_reader(alphabet: str) -> Tokenizer:
    """Clean text and cut it where no piece may reach across; every step keeps character offsets.

    Args:
        alphabet: the characters that have a piece; each other one stands alone, so that its bytes
            share its span. Empty: all have one.
    """
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("▁", "_"),  # the mark of a space is ours
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\p{Cc}\p{Cf}]"), ""),
            normalizers.Prepend(" "),  # so that a first word is like any other
            normalizers.Replace(Regex(r"\s+"), " "),
            # A space says something only before a word of a script that is written with spaces.
            normalizers.Replace(Regex(r" (?!(?!\p{Han})[\p{L}\p{N}])"), ""),
        ]
    )
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated"),
        pre_tokenizers.Split(Regex(r"[\p{P}\p{S}]"), "isolated"),
        pre_tokenizers.Metaspace(prepend_scheme="never"),
    ]
    if alphabet:
        known = "".join(f"\\x{{{ord(c):x}}}" for c in sorted({*alphabet, " "}))
        steps.insert(0, pre_tokenizers.Split(Regex(f"[^{known}]"), "isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return backend


def chunks_of(backend: Tokenizer, text: str) -> list[str]:
    """The cleaned text in the chunks that no piece crosses."""
    cleaned = backend.normalizer.normalize_str(text)
    return [chunk for chunk, _ in backend.pre_tokenizer.pre_tokenize_str(cleaned)]


def learn_pieces(
    texts: Iterable[Sequence[str]], size: int, words: Sequence[str]
) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, most likely first.

    Args:
        texts: each text as chunks that no piece crosses, e.g. ["▁a", "▁woman", ",", "穿旗袍"].
        size: most pieces to return.
        words: chunks that must be pieces of their own.

    Raises:
        ConfigError: `size` has no room for the common characters and the words.
    """
    fixed = {*COMMON_CHARACTERS, *words}
    if size < len(fixed):
        raise ConfigError(
            f"the vocabulary has room for {size} pieces, but the common characters and the "
            f"{len(set(words))} words to keep need {len(fixed)}: "
            f"make vocab_size {len(fixed) - size} larger"
        )
    counts = Counter(
        part for chunks in texts for chunk in chunks for part in split_at_words(chunk, words)
    )
    characters = Counter(dict.fromkeys("".join(counts), 0))
    for chunk, count in counts.items():
        for c in chunk:
            characters[c] += count
    # Every character gets a piece while there is room; the rest is left to the bytes.
    by_count = sorted(characters, key=lambda c: (-characters[c], c))
    fixed |= set([c for c in by_count if c not in fixed][: size - len(fixed)])
    weights = {piece: weight for piece, weight in seed_pieces(counts).items() if len(piece) > 1}
    weights |= {piece: float(characters[piece]) for piece in characters}
    scores = to_scores(weights, fixed)
    keep = len(scores)
    while True:
        for _ in range(EM_ROUNDS):
            expected = expected_counts(counts, scores)
            scores = to_scores(expected, fixed)
        if keep == size:
            break
        keep = max(size, int(keep * 0.7))  # prune in steps: a piece's use changes as others go
        optional = sorted(
            (p for p in expected if p not in fixed), key=lambda p: (-expected[p] * len(p), p)
        )
        useful = [p for p in optional if expected[p] >= 0.5][: max(keep - len(fixed), 0)]
        scores = {p: scores[p] for p in (*fixed, *useful)}
    rounded = [(piece, round(score, 6)) for piece, score in scores.items()]  # alike on every libm
    return sorted(rounded, key=lambda item: (-item[1], item[0]))


def split_at_words(chunk: str, words: Sequence[str]) -> list[str]:
    """A Chinese chunk cut around the named words, longest first; others are words already."""
    if not words or not HAN.match(chunk):
        return [chunk]
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    pattern = "(" + "|".join(re.escape(word) for word in longest_first) + ")"
    return [part for part in re.split(pattern, chunk) if part]


def seed_pieces(counts: Mapping[str, int]) -> dict[str, float]:
    """Every substring that is short enough, weighted by occurrences times length."""
    seeds: dict[str, float] = {}
    for chunk, count in counts.items():
        for start, stop in spans(chunk):
            piece = chunk[start:stop]
            seeds[piece] = seeds.get(piece, 0.0) + count * len(piece)
    return seeds


def spans(chunk: str) -> list[tuple[int, int]]:
    """All (start, stop) that may be a piece."""
    longest = MAX_HAN_LENGTH if HAN.match(chunk) else MAX_LENGTH
    n = len(chunk)
    return [(i, j) for i in range(n) for j in range(i + 1, min(i + longest, n) + 1)]


def to_scores(weights: Mapping[str, float], fixed: Iterable[str]) -> dict[str, float]:
    """Log probabilities; a fixed piece that was not seen counts as a tenth of an occurrence."""
    floored = {p: w for p, w in weights.items() if w > 1e-6} | {
        p: max(weights.get(p, 0.0), 0.1) for p in fixed
    }
    total = math.log(math.fsum(floored[p] for p in sorted(floored)))
    return {p: math.log(w) - total for p, w in floored.items()}


def expected_counts(counts: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """How often each piece is used, over all segmentations of all chunks (forward-backward)."""
    expected: dict[str, float] = dict.fromkeys(scores, 0.0)
    for chunk in sorted(counts):
        places = sorted(
            {*spans(chunk), (0, len(chunk))}
        )  # a kept word may be longer than the limit
        edges = [(i, j, scores[chunk[i:j]]) for i, j in places if chunk[i:j] in scores]
        forward = [0.0] + [-math.inf] * len(chunk)
        for i, j, score in edges:
            forward[j] = log_add(forward[j], forward[i] + score)
        backward = [-math.inf] * len(chunk) + [0.0]
        for i, j, score in sorted(edges, key=lambda edge: -edge[1]):
            backward[i] = log_add(backward[i], backward[j] + score)
        if forward[-1] == -math.inf:
            continue  # holds a character that is left to the bytes
        for i, j, score in edges:
            expected[chunk[i:j]] += counts[chunk] * math.exp(
                forward[i] + score + backward[j] - forward[-1]
            )
    return expected


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
