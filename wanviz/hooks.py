"""Choosing hooks by name, and taking every one of them away again."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from wanviz.errors import OptionError


class Removable(Protocol):
    """What PyTorch hands back for a registered hook."""

    def remove(self) -> None:
        """Take the hook away."""


class Hookable(Protocol):
    """A module that tells what passes through it."""

    def register_forward_hook(self, hook: Callable[..., Any]) -> Removable:
        """Call hook(module, inputs, output) after every forward."""

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Removable:
        """Call hook(module, inputs) before every forward."""


def match_hooks(names: Iterable[str], pattern: str) -> tuple[str, ...]:
    """The hook names that a glob selects, e.g. "blocks.*.cross_attn.q".

    Args:
        names: the hook names on offer.
        pattern: a name, or a glob with *, ? and [].

    Returns:
        The matching names, in the order given.

    Raises:
        OptionError: no name matches; the sentence names the nearest.
    """
    names = tuple(names)
    found = tuple(name for name in names if fnmatch.fnmatchcase(name, pattern))
    if found:
        return found
    if not names:
        raise OptionError(f"no hook matches {pattern!r}: this pipeline offers no hooks")
    general = [_general(name) for name in names]  # block numbers as *, as people write globs
    near = difflib.get_close_matches(pattern, list(dict.fromkeys(general)), n=1, cutoff=0.0)
    raise OptionError(
        f"no hook matches {pattern!r}; nearest: {near[0]!r}"
        if near
        else f"no hook matches {pattern!r}; there are e.g. {general[0]!r}"
    )


def _general(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


class HookSet:
    """Hooks that are removed together, whatever happens."""

    def __init__(self) -> None:
        """An empty set."""
        self._handles: list[Removable] = []

    def after(self, module: Hookable, look: Callable[[Any], None]) -> None:
        """Call look(output) after each forward of a module; the output stays as it is."""

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            look(output)

        self._handles.append(module.register_forward_hook(hook))

    def before(self, module: Hookable, call: Callable[[], None]) -> None:
        """Call call() before each forward of a module."""

        def hook(_module: Any, _inputs: Any) -> None:
            call()

        self._handles.append(module.register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Take all hooks away, the last one first; a second call does nothing."""
        while self._handles:
            self._handles.pop().remove()

    def __len__(self) -> int:
        """How many hooks are in place."""
        return len(self._handles)

    def __enter__(self) -> HookSet:
        """The set itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take all hooks away."""
        self.remove()
