"""Text encodings that are made once and kept, so that a prompt costs its text encoder one call ever.

Wan's text encoder has 5.7 billion weights, 11 GB in bfloat16, and is asked once per video. With its answers in a folder it need
not even be loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from wanviz.adapters import Adapter, adapter_for
from wanviz.errors import EncodingError, OptionError
from wanviz.files import write_whole

FORMAT = "wanviz-encoding-1"


class PromptCache:
    """Encodings of prompts, in a folder that several processes may share.

    They are told apart by the prompt and by the text encoder: its sizes, its dtype and some of its weights. A pipeline without
    one, `text_encoder=None`, is served what another pipeline has left here.

    Args:
        folder: one file for each prompt; made when the first is written.

    >>> encodings = PromptCache("encodings")
    >>> pipe(**encodings(pipe, prompt), seed=7)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __call__(
        self,
        pipe: Any,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Arguments for a call of the pipeline, in place of its texts.

        Args:
            pipe: a tinywan pipeline, or a WanPipeline of diffusers.
            prompt: one, or one for each video.
            negative_prompt: one for all, or one for each video; None is an empty one.

        Returns:
            prompt_embeds and negative_prompt_embeds, each `[b, p, c]` on the pipeline's device. They do not tell their words:
            `wanviz.capture` needs prompt=… beside them.

        Raises:
            OptionError: what is no text; numbers of prompts that do not go together; weights that cannot be looked at.
            EncodingError: the pipeline has no text encoder and the folder not this prompt, or that of several encoders; a
                file is damaged, or cannot be written.
        """
        prompts = _texts("prompt", prompt)
        negatives = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
        if len(negatives) == 1:
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise OptionError(
                f"{len(prompts)} prompts and {len(negatives)} negative prompts: give one for each, or one for all"
            )
        adapter = adapter_for(pipe)
        wanted = list(dict.fromkeys(prompts + negatives))
        reader = adapter.text_encoder()
        mark = None if reader is None else fingerprint(reader)
        found = {text: self._read(text, mark) for text in wanted}
        absent = [text for text in wanted if found[text] is None]
        if absent and mark is None:
            raise EncodingError(
                f"this pipeline has no text encoder, and {str(self.folder)!r} holds no encoding of {absent[0]!r}: encode it "
                "once with a pipeline that has one"
            )
        if absent:
            assert mark is not None
            found |= self._encode(adapter, absent, mark)
        return {
            name: torch.stack([_padded(found[text]) for text in texts]).to(adapter.device())
            for name, texts in (("prompt_embeds", prompts), ("negative_prompt_embeds", negatives))
        }

    def _encode(self, adapter: Adapter, texts: list[str], mark: str) -> dict[str, Any]:
        """Ask the text encoder, one text at a time, so that an encoding does not depend on its neighbours."""
        made = {}
        for text in texts:
            rows = adapter.embed([text])[0].detach().cpu()
            used = int(rows.any(-1).nonzero().max()) + 1 if rows.any() else 0  # then all is padding
            told = {"format": FORMAT, "text": text, "rows": str(len(rows)), "encoder": mark}
            content = save({"embeds": rows[:used].contiguous()}, told)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EncodingError(
                    f"cannot make the folder {str(self.folder)!r} ({error.strerror or error}): name one that can be written"
                ) from error
            write_whole(self._path(text, mark), content, "an encoding", EncodingError)
            made[text] = (rows[:used], len(rows))
        return made

    def _path(self, text: str, mark: str) -> Path:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.folder / f"{digest}-{mark}.safetensors"

    def _read(self, text: str, mark: str | None) -> tuple[Tensor, int] | None:
        """Rows that are not padding, and how many there are with it."""
        if mark is not None:
            paths = [self._path(text, mark)]
        else:
            paths = sorted(self.folder.glob(self._path(text, "*").name))
        paths = [path for path in paths if path.exists()]
        if len(paths) > 1:
            raise EncodingError(
                f"{str(self.folder)!r} holds encodings of {text!r} by {len(paths)} text encoders, and this pipeline has none that "
                "tells which: keep a folder for each"
            )
        if not paths:
            return None
        try:
            with safe_open(paths[0], framework="pt") as file:
                told = file.metadata() or {}
                embeds = file.get_tensor("embeds")
            if told.get("format") != FORMAT or told.get("text") != text:
                raise ValueError("it is of something else")
            return embeds, int(told["rows"])
        except Exception as error:
            raise EncodingError(
                f"cannot read the encoding {str(paths[0])!r} ({error!s:.120}): delete it, and it is made again"
            ) from error


def fingerprint(encoder: Any) -> str:
    """What tells a text encoder from others: its sizes, its dtypes, and 64 weights of every tensor.

    Args:
        encoder: a module.

    Returns:
        16 hexadecimal digits.

    Raises:
        OptionError: its weights are not at hand, as under sequential offload.
    """
    found = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        found.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        if tensor.is_meta:
            raise OptionError(
                "the weights of the text encoder are not at hand, and encodings cannot be told apart without them: encode "
                "prompts before sequential offload is switched on"
            )
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 64)][:64].to("cpu", torch.float32)
        found.update(some.numpy().tobytes())
    return found.hexdigest()[:16]


def _padded(kept: tuple[Tensor, int] | None) -> Tensor:
    assert kept is not None
    rows, count = kept
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _texts(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise OptionError(f"{name} holds {text!r:.60}, which is no text")
    if not texts:
        raise OptionError(f"{name} is empty: give a text, or one for each video")
    return texts
