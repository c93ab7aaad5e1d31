"""Tiny random Wan pipelines of diffusers, with a tokenizer that is made on the spot."""

import functools
import unicodedata
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

SIZE = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "output_type": "np"}
ENGLISH = "a woman in a red qipao walks in the rain with an umbrella"
CHINESE = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
_CORPUS = (
    ENGLISH, CHINESE, "A cat and a dog bake a cake, the cat measures flour carefully.",
    "白猫和黑狗在厨房里做蛋糕，阳光从窗户照进来。", "a child runs to the left on a beach at night",
    "镜头缓缓推近，雪花飘落在街道上", "low quality, blurred, static; worst quality?",
    "it's well-known that 3.5 km/h ABC don't naïve café O'Brien state-of-the-art! (“”—…) ,.;'\"&/",
    "😀 👩\u200d👧 ABC 12 fi 1⁄2 é 한국 日本語 مرحبا \u200b No5 1 kg 《》「」阳光厨房。！",
)  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    """A fast tokenizer laid out as UMT5's, the same in every process: </s> last, <pad> 0, spaces as marks."""
    from transformers import PreTrainedTokenizerFast

    mark, words = "\u2581", set()
    for text in _CORPUS:
        for word in unicodedata.normalize("NFKC", text).split():
            words |= {mark + word[:3], word[-3:], word[:2]}
    letters = {letter for text in _CORPUS for letter in unicodedata.normalize("NFKC", text)}
    pieces = sorted((words | letters | {mark}) - {" "})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -9.0 - 2.0 / len(piece)) for piece in pieces]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=512,
    )  # fmt: skip


def transformer(seed: int = 0, **changes: Any) -> Any:
    """A random denoiser of two layers."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
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
    return WanTransformer3DModel(**{**sizes, **changes}).eval()


def parts() -> dict[str, Any]:
    """Text encoder, VAE, scheduler and tokenizer."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    config = UMT5Config(
        vocab_size=len(tokenizer()), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": UMT5EncoderModel(config).eval(),
        "vae": vae.eval(),
        "scheduler": scheduler,
    }


def wan21(**changes: Any) -> Any:
    """Like Wan2.1-T2V: one denoiser."""
    from diffusers import WanPipeline

    return quiet(WanPipeline(**parts(), transformer=transformer(**changes)))


def wan22(**changes: Any) -> Any:
    """Like Wan2.2-T2V-A14B: two noise experts."""
    from diffusers import WanPipeline

    return quiet(
        WanPipeline(
            **parts(),
            transformer=transformer(0, **changes),
            transformer_2=transformer(2, **changes),
            boundary_ratio=0.875,
        )
    )


def quiet(pipe: Any) -> Any:
    """Without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: Any = ENGLISH, seed: int = 7, **options: Any) -> Any:
    """A small video, or its latents."""
    asked = {"negative_prompt": "blurred", **SIZE, **options}
    generator = torch.Generator().manual_seed(seed)
    if "prompt_embeds" in asked:
        prompt = None
    return pipe(prompt, generator=generator, **asked).frames
