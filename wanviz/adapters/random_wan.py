"""A tiny Wan pipeline with random weights: everything of the real one but its size and its sense.

For trying calls, options and memory before tens of gigabytes are loaded, and for tests. Its tokenizer is laid out
as UMT5's (spaces as marks, `</s>` behind the text, padding 0) and knows the letters and the beginnings of the words of
some texts; its videos are noise, and so are its maps.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

TEXTS = (
    "a woman in a red qipao walks in the rain with an umbrella",
    "一位穿红色旗袍的女子在江南雨巷撑伞漫步，背景有青石板路和屋檐滴水。",
)
_MARK = "\u2581"


def random_tokenizer(texts: Iterable[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A fast tokenizer that knows every letter of some texts, and short pieces of their words.

    Args:
        texts: what it is to know; the same texts make the same tokenizer.
    """
    pieces = {_MARK}
    for text in texts:
        normal = unicodedata.normalize("NFKC", text)
        pieces |= set(normal) - {" "}
        for word in normal.split():
            pieces |= {_MARK + word[:3], word[-3:], word[:2]}
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -9.0 - 2.0 / len(piece)) for piece in sorted(pieces)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def random_transformer(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """A denoiser of two layers.

    Args:
        seed: of its weights; the global generator is left where it was.
        changes: of the sizes, by diffusers' names, e.g. num_layers=4.
    """
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 32,
        "num_layers": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**sizes, **changes}).eval()


def random_parts(texts: Iterable[str] = TEXTS) -> dict[str, Any]:
    """Tokenizer, text encoder, VAE (the strides and channels of Wan's) and scheduler.

    Args:
        texts: what the tokenizer is to know.
    """
    tokenizer = random_tokenizer(texts)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return {
            "tokenizer": tokenizer,
            "text_encoder": UMT5EncoderModel(config).eval(),
            "vae": AutoencoderKLWan(
                base_dim=4,
                z_dim=16,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],  # diffusers spells it so
            ).eval(),
            "scheduler": UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        }


def random_wan(noise_experts: int = 2, texts: Iterable[str] = TEXTS, **changes: Any) -> WanPipeline:
    """A pipeline like Wan2.2-T2V-A14B's, or, with one denoiser, like Wan2.1's.

    Args:
        noise_experts: 1 or 2 denoisers.
        texts: what the tokenizer is to know.
        changes: of the denoisers' sizes, by diffusers' names.

    Returns:
        A WanPipeline without a progress bar.
    """
    parts = random_parts(texts) | {"transformer": random_transformer(0, **changes)}
    if noise_experts == 2:
        parts |= {"transformer_2": random_transformer(2, **changes), "boundary_ratio": 0.875}
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
