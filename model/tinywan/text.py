"""Text: a tokenizer that remembers characters, and a T5-style encoder.

Wan reads prompts with UMT5-XXL (arXiv 2304.09151), a multilingual T5 (arXiv 1910.10683). Here are
the same two parts in small: a unigram tokenizer (Kudo 2018, arXiv 1804.10959; `unigram.py` trains
it) whose every token knows the characters it came from, and a few pre-norm blocks with relative
position biases. As in Wan, the embeddings of padding are exactly zero.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor, nn

from tinywan.errors import CheckpointError, ConfigError, PromptError
from tinywan.norms import RMSNorm
from tinywan.unigram import BYTE_PIECES, SPECIAL_PIECES, chunks_of, learn_pieces, text_reader

TOKENIZER_FILE = "tokenizer.json"
PAD_ID, EOS_ID = 0, 1
SHOWN_CHARACTERS = 24  # how much of the ignored text the truncation warning quotes


class PromptTruncatedWarning(UserWarning):
    """A prompt had more tokens than the text encoder reads; the message says where it was cut."""


@dataclass(frozen=True)
class Encoding:
    """One prompt as tokens.

    ids: token ids, `</s>` last, no padding.
    offsets: for each id its (start, stop) characters in the text as given; (n, n) for `</s>`.
    truncated_at: the first character that was ignored, or None.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    truncated_at: int | None


class UnigramTokenizer:
    """Any text to token ids and back, with character offsets.

    Text is read in Unicode NFKC and lower case; invisible control characters are dropped;
    characters without a piece of their own become UTF-8 bytes. Ids: 0 padding, 1 `</s>`, 2 unknown
    (never produced), 3-258 bytes, then pieces.

    Args:
        backend: the Hugging Face tokenizer underneath, from `train` or `from_pretrained`.
        text_len: number of tokens that a prompt is padded or cut to, `</s>` included.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID

    def __init__(self, backend: Tokenizer, text_len: int) -> None:
        if text_len < 2:
            raise ConfigError(
                f"text_len={text_len} leaves no room for a word: use 2 or more, e.g. 64"
            )
        self._backend = backend
        self.text_len = text_len

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._backend.get_vocab_size()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 768,
        text_len: int = 64,
        words: Iterable[str] = (),
    ) -> UnigramTokenizer:
        """Learn the pieces from example prompts; the same texts always give the same tokenizer.

        Args:
            texts: example prompts, any mixture of languages.
            vocab_size: most ids to use; fewer come out where the texts hold no more pieces.
            text_len: number of tokens that a prompt is padded or cut to.
            words: words that must stay tokens of their own, e.g. ("旗袍", "伞", "umbrella").

        Raises:
            ConfigError: no text, or a vocabulary too small for the bytes and the words.
        """
        reader = text_reader("")
        chunks = [chunks_of(reader, text) for text in texts]
        if not any(chunks):
            raise ConfigError("cannot train a tokenizer on no text: give at least one prompt")
        kept = [chunk for word in words for chunk in chunks_of(reader, word)]
        room = vocab_size - len(SPECIAL_PIECES) - len(BYTE_PIECES)
        scored = learn_pieces(chunks, room, kept)
        fixed = [(piece, 0.0) for piece in (*SPECIAL_PIECES, *BYTE_PIECES)]
        alphabet = "".join(piece for piece, _ in scored if len(piece) == 1)
        backend = text_reader(alphabet)
        unknown = SPECIAL_PIECES.index("<unk>")
        backend.model = models.Unigram(fixed + scored, unk_id=unknown, byte_fallback=True)
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        return cls(backend, text_len)

    def encode(self, text: str) -> Encoding:
        """Tokens of one prompt, each with its characters in `text`.

        Warns:
            PromptTruncatedWarning: the prompt has more than `text_len - 1` tokens.
        """
        if not isinstance(text, str):
            raise PromptError(
                f"a prompt must be a string, found {type(text).__name__}: {text!r:.60}"
            )
        # Lone surrogates are not Unicode text: read them, character for character, as U+FFFD.
        found = self._backend.encode(
            re.sub("[\ud800-\udfff]", "\ufffd", text), add_special_tokens=False
        )
        ids, offsets = list(found.ids), _visible_offsets(text, found.offsets)
        truncated_at = None
        if len(ids) > self.text_len - 1:
            truncated_at = offsets[self.text_len - 1][0]
            # A character that was cut between its bytes is ignored as a whole.
            kept = next(i for i, (start, _) in enumerate(offsets) if start >= truncated_at)
            ids, offsets = ids[:kept], offsets[:kept]
            shown = text[truncated_at : truncated_at + SHOWN_CHARACTERS]
            shown = "".join(c if c.isprintable() else " " for c in shown)
            more = "…" if len(text) > truncated_at + SHOWN_CHARACTERS else ""
            warnings.warn(
                f"the prompt is longer than {self.text_len - 1} tokens: everything after character "
                f"{truncated_at} ('{shown}{more}') is ignored",
                PromptTruncatedWarning,
                stacklevel=2,
            )
        end = (len(text), len(text))
        return Encoding((*ids, EOS_ID), (*offsets, end), truncated_at)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded ids and mask of a batch of prompts: int64 [b p] and bool [b p], p = text_len."""
        if isinstance(texts, str):
            raise PromptError("the tokenizer takes a list of prompts: write tokenizer([prompt])")
        ids = torch.full((len(texts), self.text_len), PAD_ID, dtype=torch.long)
        mask = torch.zeros(len(texts), self.text_len, dtype=torch.bool)
        for row, text in enumerate(texts):
            found = self.encode(text).ids
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = True
        return ids, mask

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, as the model reads it: NFKC, lower case, no padding."""
        return self._backend.decode([int(i) for i in ids if int(i) >= len(SPECIAL_PIECES)])

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, e.g. '▁woman', '旗袍', '<0xF0>'."""
        found = self._backend.id_to_token(int(token_id))
        if found is None:
            raise PromptError(
                f"token id {token_id} is outside the vocabulary of {self.vocab_size} ids"
            )
        return found

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `tokenizer.json`; plain `tokenizers` can read it too, `</s>` and padding included."""
        whole = Tokenizer.from_str(self._backend.to_str())
        whole.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", EOS_ID)]
        )
        whole.enable_truncation(self.text_len)
        whole.enable_padding(pad_id=PAD_ID, pad_token=SPECIAL_PIECES[PAD_ID], length=self.text_len)
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / (TOKENIZER_FILE + ".partial")
        partial.write_text(whole.to_str(pretty=True), encoding="utf-8")
        partial.replace(directory / TOKENIZER_FILE)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> UnigramTokenizer:
        """Read what `save_pretrained` wrote.

        Raises:
            CheckpointError: there is no such file, or it is not a tokenizer of tinywan.
        """
        path = Path(directory) / TOKENIZER_FILE
        try:
            text = path.read_text(encoding="utf-8")
            text_len = json.loads(text)["truncation"]["max_length"]
            backend = Tokenizer.from_str(text)
        except OSError as error:
            raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(
                f"{path} is not a whole tokenizer of tinywan ({error!s:.80}): "
                "fetch or train it anew"
            ) from error
        fixed = (*SPECIAL_PIECES, *BYTE_PIECES)
        if [backend.id_to_token(i) for i in range(len(fixed))] != list(fixed):
            raise CheckpointError(
                f"{path} is a tokenizer of another model: ids 0-{len(fixed) - 1} should be "
                f"{', '.join(SPECIAL_PIECES)} and the 256 bytes"
            )
        backend.no_truncation()
        backend.no_padding()
        backend.post_processor = processors.Sequence([])
        return cls(backend, text_len)


def _visible_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans from first to last visible character; a lone space mark takes the span that follows."""
    spans = list(offsets)
    for i in reversed(range(len(spans))):
        visible = [at for at in range(*offsets[i]) if not _is_unseen(text[at])]
        if visible:
            spans[i] = (visible[0], visible[-1] + 1)
        elif i + 1 < len(spans):
            spans[i] = spans[i + 1]
    return spans


def _is_unseen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder."""

    vocab_size: int = 768  # ids of the tokenizer
    dim: int = 192  # width of prompt_embeds; the transformer projects it to its own
    num_heads: int = 6  # heads of dim / num_heads channels
    num_layers: int = 2  # captions are short: two blocks bind colours to their nouns
    ffn_dim: int = 512  # inner width of the gated feed-forward, 8/3 dim as usual with gates
    text_len: int = 96  # tokens a prompt is padded to
    relative_buckets: int = 32  # learnt distances, half of them to each side (T5)
    max_distance: int = 128  # tokens; farther ones share the last bucket (T5)
    eps: float = 1e-6  # of the RMS norms

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_heads", "num_layers", "ffn_dim", "text_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.relative_buckets % 4 or self.max_distance <= self.relative_buckets // 4:
            raise ConfigError(
                f"relative_buckets={self.relative_buckets} with max_distance={self.max_distance}: "
                "use a multiple of 4, and a distance above a quarter of it, e.g. 32 and 128"
            )


NEIGHBOURS = (-1, 1, -2, 2)  # tokens away, what the first heads look at before training
STEEP = 2.0  # of the bias per token of distance from there: the neighbour gets about 3/4


class RelativePositionBias(nn.Module):
    """A learnt number per head and distance, added to the attention logits (T5, section 2.1)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_buckets = config.relative_buckets
        self.max_distance = config.max_distance
        self.table = nn.Embedding(config.relative_buckets, config.num_heads)

    @torch.no_grad()
    def favour_neighbours(self) -> None:
        """Let the first heads begin with a look at one neighbour each, the others at everything.

        Begun at zero the biases stay near it, and without them the encoder is blind to order: red coat
        and blue umbrella reads like blue coat and red umbrella. Slopes by distance: ALiBi, arXiv
        2108.12409; here around a neighbour.
        """
        nn.init.zeros_(self.table.weight)
        distance = torch.arange(1 - self.max_distance, self.max_distance)
        buckets = self.bucket(distance)
        for head, favourite in zip(range(self.table.embedding_dim), NEIGHBOURS, strict=False):
            away = (distance - favourite).abs().float()
            for number in buckets.unique():
                self.table.weight[number, head] = -STEEP * away[buckets == number].min()

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket of key position minus query position: exact when near, logarithmic when far."""
        one_side = self.num_buckets // 2
        exact = one_side // 2
        far = distance.abs().clamp(min=1).float().div(exact).log() / math.log(
            self.max_distance / exact
        )
        far = (exact + far * (one_side - exact)).long().clamp(max=one_side - 1)
        return torch.where(distance.abs() < exact, distance.abs(), far) + one_side * (distance > 0)

    def forward(self, length: int) -> Tensor:
        """Biases [1 n q k] of a prompt of so many tokens."""
        positions = torch.arange(length, device=self.table.weight.device)
        distance = positions[None, :] - positions[:, None]  # query, key
        bias: Tensor = self.table(self.bucket(distance))
        return rearrange(bias, "q k n -> 1 n q k")


class TextBlock(nn.Module):
    """Pre-norm self-attention and gated feed-forward, without biases.

    Each block has its own position biases, as in UMT5; T5 shares the first block's. Unlike both,
    queries and keys are RMS-normalised and logits scaled by 1/sqrt(d), as in the denoiser: T5 folds the
    scale into the initial weights, and without a norm logits grew until attention was one-hot and no
    bias of position could be heard.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        dim, ffn_dim = config.dim, config.ffn_dim
        self.num_heads = config.num_heads
        self.norm1 = RMSNorm(dim, config.eps)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.position_bias = RelativePositionBias(config)
        self.norm2 = RMSNorm(dim, config.eps)
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[b p c] to [b p c]; keys where mask [b p] is False are not seen."""
        h: Tensor = self.norm1(x)
        q, k, v = (
            rearrange(projected, "b p (n d) -> b n p d", n=self.num_heads)
            for projected in (self.norm_q(self.q(h)), self.norm_k(self.k(h)), self.v(h))
        )
        bias = self.position_bias(x.shape[1]).to(q.dtype)  # 1 n p p
        bias = bias.masked_fill(~mask[:, None, None, :], float("-inf"))  # b n p p
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(rearrange(attended, "b n p d -> b p (n d)"))
        h = self.norm2(x)
        h = self.down(nn.functional.gelu(self.gate(h), approximate="tanh") * self.up(h))
        return x + h


class TextEncoder(nn.Module):
    """Token ids to prompt embeddings; the rows of padding are exactly zero, as Wan feeds them."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.eps)
        self.init_weights()

    def init_weights(self) -> None:
        """Embeddings N(0, 1) as in T5, matrices N(0, 1/inputs), position biases: see there."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, RelativePositionBias):
                module.favour_neighbours()
        nn.init.normal_(self.embed.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed prompts.

        Args:
            ids: int64 [b p], any p.
            mask: bool [b p], True for words and `</s>`, False for padding.

        Returns:
            [b p c], rows where mask is False exactly zero.
        """
        x: Tensor = self.embed(ids)  # b p c
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x.masked_fill(~mask[..., None], 0.0)
