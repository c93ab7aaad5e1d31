"""Text encodings that are made once and kept, so that a prompt costs its text encoder one call ever.

Wan's text encoder has 5.7 billion weights, 11 GB in bfloat16, and is asked once per video. With its answers in a folder it need
not even be loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

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

    They are told apart by the prompt and by the text encoder: its sizes, dtypes and weights. A pipeline without one,
    `text_encoder=None`, is served what another pipeline has left here.

    Args:
        folder: one file for each prompt; made when the first is written.

    >>> encodings = PromptCache("encodings")
    >>> pipe(**encodings(pipe, prompt), seed=7)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise OptionError(f"folder={folder!r:.60}: name a folder")
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
            OptionError: what is no text, or an empty prompt; numbers of prompts that do not go together; weights that cannot be
                looked at.
            EncodingError: the pipeline has no text encoder and the folder not this prompt, or that of several encoders; a
                file is damaged, or cannot be written; the encoder gave numbers that are not finite.

        Warns:
            UserWarning: the prompt was longer than the model reads, also where its encoding was kept.
        """
        prompts = _texts("prompt", prompt)
        if not all(text.strip() for text in prompts):
            raise OptionError("the prompt is empty: say what to draw")
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
        found: dict[str, Any] = {text: self._read(text, mark) for text in wanted}
        absent = [text for text in wanted if found[text] is None]
        if absent and mark is None:
            raise EncodingError(
                f"this pipeline has no text encoder, and {str(self.folder)!r} holds no encoding of {absent[0]!r}: encode it "
                "once with a pipeline that has one"
            )
        if absent:
            assert mark is not None
            found |= self._encode(adapter, absent, mark)
        for text in wanted:
            _, _, cut = found[text]
            if cut is not None and text not in absent:  # a fresh one was told by the pipeline
                warnings.warn(
                    f"the kept encoding of {text!r:.60} ends at character {cut}: the model reads no more",
                    stacklevel=2,
                )
        return {
            name: torch.stack([_padded(*found[text]) for text in texts]).to(adapter.device())
            for name, texts in (("prompt_embeds", prompts), ("negative_prompt_embeds", negatives))
        }

    def _encode(self, adapter: Adapter, texts: list[str], mark: str) -> dict[str, Any]:
        """Ask the text encoder, one text at a time, so that an encoding does not depend on its neighbours."""
        made: dict[str, Any] = {}
        for text in texts:
            rows = adapter.embed([text])[0].detach().cpu()
            if not rows.isfinite().all():
                raise EncodingError(
                    f"the text encoder gave numbers that are not finite for {text!r:.60}: encode in bfloat16 or float32"
                )
            cut = adapter.encode(text).truncated_at
            used = int(rows.any(-1).nonzero().max()) + 1 if rows.any() else 0  # then all is padding
            told = {"format": FORMAT, "text": text, "rows": str(len(rows)), "encoder": mark}
            if cut is not None:
                told["truncated_at"] = str(cut)
            content = save({"embeds": rows[:used].contiguous()}, told)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EncodingError(
                    f"cannot make the folder {str(self.folder)!r} ({error.strerror or error}): name one that can be written"
                ) from error
            write_whole(self._path(text, mark), content, "an encoding", EncodingError)
            made[text] = (rows[:used], len(rows), cut)
        return made

    def _path(self, text: str, mark: str) -> Path:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.folder / f"{digest}-{mark}.safetensors"

    def _read(self, text: str, mark: str | None) -> tuple[Tensor, int, int | None] | None:
        """Rows that are not padding, how many there are with it, and where the text was cut off."""
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
            cut = told.get("truncated_at")
            return embeds, int(told["rows"]), None if cut is None else int(cut)
        except Exception as error:
            raise EncodingError(
                f"cannot read the encoding {str(paths[0])!r} ({error!s:.120}): delete it, and it is made again"
            ) from error


def fingerprint(encoder: Any) -> str:
    """What tells a text encoder from others: names, sizes and dtypes of its tensors, all of their bits summed, and some as they are.

    Args:
        encoder: a module.

    Returns:
        16 hexadecimal digits, the same on every device. It is worked out anew when a tensor has changed.

    Raises:
        OptionError: its weights are not at hand, as under sequential offload.
    """
    state = encoder.state_dict()
    versions = tuple(
        (t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype)
        for t in state.values()
        if not t.is_meta
    )
    known = _FINGERPRINTS.get(encoder)
    if known is not None and known[0] == versions:
        return known[1]
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        if tensor.is_meta:
            raise OptionError(
                "the weights of the text encoder are not at hand, and encodings cannot be told apart without them: encode "
                "prompts before sequential offload is switched on"
            )
        try:
            flat = tensor.detach().contiguous().reshape(-1)
            bits = flat.view(torch.int16 if flat.element_size() % 2 == 0 else torch.uint8)
            found.update(str(int(bits.sum(dtype=torch.int64))).encode())
            some = bits[:: max(1, len(bits) // 64)][:64].tolist()
        except (RuntimeError, NotImplementedError) as error:
            raise OptionError(
                f"the weights {name!r} of the text encoder cannot be looked at ({error!s:.100}): encode with weights that are "
                "plain tensors"
            ) from error
        found.update(json.dumps(some).encode())
    mark = found.hexdigest()[:16]
    _FINGERPRINTS[encoder] = versions, mark
    return mark


_FINGERPRINTS: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def _padded(rows: Tensor, count: int, _cut: int | None) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _texts(name: str, given: Any) -> list[str]:
    if not isinstance(given, Iterable):
        raise OptionError(f"{name} is {given!r:.60}: give a text, or one for each video")
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise OptionError(f"{name} holds {text!r:.60}, which is no text")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise OptionError(
                f"{name} {text!r:.60} holds half of a character (a surrogate): take it out"
            )
    if not texts:
        raise OptionError(f"{name} is empty: give a text, or one for each video")
    return texts
