"""What every training run needs: two optimisers, an average of the weights, logs, and a way back.

A run lives in one folder and can be killed at any moment: its state is written beside the old one
and takes its place in one atomic rename. Every batch is drawn from (seed, step) alone, so that a
resumed run sees what an unbroken one would have seen.

Under `torchrun` every process takes its share of each batch and gradients are averaged; on a CPU,
two processes of one thread are faster than one process of two.
"""

import ctypes
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from tinywan.errors import CheckpointError, ConfigError
from tinywan.muon import Muon


@dataclass(frozen=True)
class TrainerConfig:
    """How fast to learn, and how often to look."""

    steps: int
    minutes: float | None = (
        None  # to spend at most, from the first step on; resumed runs go on counting
    )
    lr: float = 2e-3  # of AdamW
    muon_lr: float = 0.02
    warmup: int = 100  # steps from 0 to the full rate
    cooldown: float = 0.3  # share of the run over which the rate falls linearly to a twentieth
    clip: float = 1.0  # largest gradient norm
    bfloat16: bool = False  # Muon in half precision, where the processor has it
    ema: float = 0.995  # of the averaged weights, less during the first steps
    save_every: float = 120.0  # seconds
    sample_every: int = 500  # steps

    def done(self, step: int, seconds: float = 0.0) -> float:
        """Share of the run that is over after step number `step` and so many seconds; 1 ends it."""
        spent = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max((step + 1) / self.steps, spent)

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Share of the full learning rate at `step`, in (0, 1]."""
        start = 1 - self.cooldown
        done = min(1.0, self.done(step, seconds))
        fall = 1.0 if done <= start else 1 - 0.95 * (done - start) / self.cooldown
        return min(1.0, (step + 1) / max(1, self.warmup)) * fall


# What a resumed run may be asked for otherwise: how long, on what machine, and when to look.
MAY_CHANGE = {
    "steps", "minutes", "save_every", "sample_every", "workers", "micro_batch", "compiled", "bfloat16",
}  # fmt: skip


def lasting(asked: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a resumed run has to be asked for again.

    Args:
        asked: a dataclass, e.g. a recipe; those inside it are looked through, too.
        name: of what is asked, "" for the whole.

    Yields:
        Names, e.g. "seed" or "phases.0.batch", and values, without those of `MAY_CHANGE`.
    """
    parts: Iterable[tuple[object, Any]]
    if is_dataclass(asked):
        names = [field.name for field in fields(asked) if field.name not in MAY_CHANGE]
        parts = [(each, getattr(asked, each)) for each in names]
    elif isinstance(asked, tuple):
        parts = enumerate(asked)
    else:
        yield name, asked
        return
    for inner, value in parts:
        yield from lasting(value, f"{name}.{inner}" if name else str(inner))


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """Twelve digits that differ where any weight does; "none" for no modules."""
    weights = [value for module in modules for value in module.state_dict().values()]
    found = hashlib.sha256()
    for value in weights:
        found.update(value.float().cpu().numpy().tobytes())
    return found.hexdigest()[:12] if weights else "none"


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for the next step, which takes a sixth less time on a CPU.

    Otherwise large tensors are handed back to the system and fetched again, page by page, at every step.
    With another C library nothing happens. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    top_pad, trim_threshold, mmap_threshold = -2, -1, -3
    if not mallopt(mmap_threshold, 2**30) and not mallopt(
        mmap_threshold, 2**25
    ):  # older ones: 32 MiB
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside `torchrun`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def check_shareable(batch: int, together: int = 1) -> None:
    """Refuse a batch that the processes cannot share evenly.

    Args:
        batch: clips per step.
        together: clips that belong to one process.

    Raises:
        ConfigError: naming what would fit.
    """
    _, world = rank_and_world()
    if world > 1 and batch % (world * together):
        raise ConfigError(
            f"a batch of {batch} cannot be shared evenly by {world} processes: use a multiple of "
            f"{world * together}"
        )


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over all processes, in one message.

    A token expert that no token chose here may have been chosen elsewhere; where none was chosen
    anywhere there is no gradient, as in one process.

    Args:
        module: the same in every process.
    """
    _, world = rank_and_world()
    if world == 1:
        return
    params = [p for p in module.parameters() if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    used = torch.tensor([p.grad is not None for p in params], dtype=grads[0].dtype)
    flat = torch.cat([*(grad.flatten() for grad in grads), used.to(grads[0].device)])
    dist.all_reduce(flat)
    *means, used = flat.split([*(p.numel() for p in params), len(params)])
    for param, mean, count in zip(params, means, used.tolist(), strict=True):
        param.grad = (mean / world).view_as(param) if count else None


class Trainer:
    """Trains one module in one folder; use it as a context manager, so that logs are closed.

    Args:
        folder: where state and logs are kept; made if missing.
        module: what is trained.
        config: rates and intervals.
        is_matrix: tells by name which 2-D parameters go to Muon; the others go to AdamW.
        asked: dataclasses that tell what is learnt; a resumed run has to be asked for the same.
        start: whose weights the run goes on from, if any; a resumed run has to bring the same.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        config: TrainerConfig,
        is_matrix: Callable[[str], bool],
        asked: Sequence[Any] = (),
        start: Sequence[nn.Module] = (),
    ) -> None:
        self.folder, self.module, self.config = folder, module, config
        folder.mkdir(parents=True, exist_ok=True)
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and is_matrix(name)]
        others = [p for name, p in named if not (p.ndim == 2 and is_matrix(name))]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
        ]
        if matrices:
            self.optimizers.append(
                Muon(matrices, lr=config.muon_lr, weight_decay=0.01, bfloat16=config.bfloat16)
            )
        self.full_rates = [g["lr"] for o in self.optimizers for g in o.param_groups]
        self.average = {name: p.detach().clone() for name, p in named}
        self.asked: dict[str, Any] = {"start": fingerprint(start)}
        for part in asked:
            self.asked |= lasting(part)
        self.step = 0
        self.saved: int | None = None  # step of the state in the folder
        self.seconds = 0.0
        self.leads = rank_and_world()[0] == 0  # the process that writes and draws
        self._last_save = time.monotonic()
        self._whole = True  # False while weights, optimisers and average are out of step

    @property
    def state_path(self) -> Path:
        """File from which the run resumes."""
        return self.folder / "state.pt"

    def __enter__(self) -> Self:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "training keeps logs with tensorboard, which is missing: pip install 'wanviz[train]'"
            ) from error

        self._writer: SummaryWriter | None = None
        if self.leads:
            self._writer = SummaryWriter(str(self.folder / "logs"), purge_step=self.step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def resume(self) -> bool:
        """Take up the state of an earlier run in this folder, if there is one.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: where the state belongs to another architecture or cannot be read.
            ConfigError: where it was asked for something else, or went on from other weights.
        """
        if not self.state_path.exists():
            return False
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            self._compare(state.get("asked", {}))  # older ones do not tell
            self.module.load_state_dict(state["module"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            for name, value in state["average"].items():
                self.average[name].copy_(value)
        except ConfigError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"cannot resume from {self.state_path}: {error}. Use another folder to start anew"
            ) from error
        self.step, self.seconds = state["step"], state["seconds"]
        self.saved = self.step
        return True

    def _compare(self, kept: dict[str, Any]) -> None:
        """Refuse a state that was asked for something else."""
        other = [
            f"{name}={value!r} (it was {kept[name]!r})"
            for name, value in self.asked.items()
            if name in kept and kept[name] != value
        ]
        if other:
            raise ConfigError(
                f"{self.folder} was begun with other options: {', '.join(other)}: resume with the old "
                "ones, or name another --out"
            )

    def save(self) -> None:
        """Write the state; a kill at any moment leaves either the old or the new one."""
        if not self.leads:
            return
        state: dict[str, Any] = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "asked": self.asked,
        }
        half = self.state_path.with_suffix(".part")
        with half.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(self.state_path)
        self.saved, self._last_save = self.step, time.monotonic()

    def run(
        self, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], look: Callable[[int], None]
    ) -> None:
        """Train to the last step; Ctrl-C saves before it leaves, unless it fell into an update.

        What Ctrl-C then raises says what is left.

        Args:
            loss_of: computes the loss of a step, and figures to log; a figure called "loss" stands
                for that of the whole batch where the loss is only its last micro-batch's share.
            look: called every `sample_every` steps with averaged weights, to draw pictures and keep them.
        """
        try:
            self._learn(loss_of, look)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self._left()) from stop

    def _left(self) -> str:
        """What an interrupt left behind."""
        if self._whole and self.saved == self.step:
            return f"stopped and saved after step {self.step}; the same command resumes"
        if self.saved is None:
            left = "nothing was saved yet, and the same command begins anew"
        else:
            left = f"the same command resumes after step {self.saved}"
        return f"stopped within a step, or while it was saved, and it is lost: {left}"

    def _learn(
        self, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], look: Callable[[int], None]
    ) -> None:
        steps = range(self.step, self.config.steps)
        bar = tqdm(
            steps,
            initial=self.step,
            total=self.config.steps,
            desc=self.folder.name,
            disable=not self.leads,
        )
        began = time.monotonic() - self.seconds
        try:
            for step in bar:
                if self.config.minutes is not None and self.seconds >= 60 * self.config.minutes:
                    break
                self.module.zero_grad(set_to_none=True)
                loss, figures = loss_of(step)  # may have sent gradients of micro-batches back
                self._update(loss, step)
                self.seconds = self._agreed(time.monotonic() - began)
                self.step = step + 1
                self._whole = True
                figures = {"loss": loss.item(), **figures}
                bar.set_postfix(loss=f"{figures['loss']:.4f}", refresh=False)
                if self._writer is None:  # the leading process writes and draws
                    continue
                for name, value in figures.items():
                    self._writer.add_scalar(name, value, step)
                last = self.config.done(step, self.seconds) >= 1
                if self.step % self.config.sample_every == 0 or last:
                    with self.averaged():
                        look(self.step)
                if time.monotonic() - self._last_save > self.config.save_every:
                    self.save()
        finally:
            if self._whole:
                self.save()

    def _agreed(self, seconds: float) -> float:
        """The leading process's clock where the rates follow it: all must learn alike and end together."""
        if self.config.minutes is None or rank_and_world()[1] == 1:
            return seconds
        told = torch.tensor(
            seconds, dtype=torch.float64, device=next(self.module.parameters()).device
        )
        dist.broadcast(told, 0)
        return float(told)

    def _update(self, loss: Tensor, step: int) -> None:
        rate = self.config.rate(step, self.seconds)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * rate
        loss.backward()
        average_gradients(self.module)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            tqdm.write(f"step {step}: the gradient is not finite; this batch is left out")
            return
        self._whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        values = dict(self.module.named_parameters())
        follow = get_ema_multi_avg_fn(decay)
        follow(list(self.average.values()), [values[name] for name in self.average], 0)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the module has the averaged weights."""
        self._whole = False
        self._exchange()
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self._exchange()
            self.module.train(was_training)
            self._whole = True

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the module's weights with the averaged ones."""
        for name, param in self.module.named_parameters():
            if name in self.average:
                kept = param.clone()
                param.copy_(self.average[name])
                self.average[name].copy_(kept)
