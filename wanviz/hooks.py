"""Hooks on modules and methods, and taking every one of them away again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeAlias


class Removable(Protocol):
    """What PyTorch hands back for a registered hook."""

    def remove(self) -> None:
        """Take the hook away."""


class Hookable(Protocol):
    """A module that tells what passes through it."""

    def register_forward_hook(
        self, hook: Callable[..., Any], *, with_kwargs: bool = False, always_call: bool = False
    ) -> Removable:
        """Call hook(module, inputs, output) after every forward."""

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, with_kwargs: bool = False, prepend: bool = False
    ) -> Removable:
        """Call hook(module, inputs), or hook(module, args, kwargs), before every forward."""


Arguments: TypeAlias = tuple[Any, ...]
Keywords: TypeAlias = dict[str, Any]
Listener: TypeAlias = Callable[[Arguments, Keywords], Callable[[Any], None] | None]
_ABSENT = object()


class _Overheard:
    """A method of one object, and those who listen to it; they may leave in any order."""

    def __init__(self, owner: object, name: str) -> None:
        self.before = vars(owner).get(name, _ABSENT)
        self.method = getattr(owner, name)
        self.listeners: list[_Ear] = []
        functools.update_wrapper(
            self, self.method
        )  # whoever looks at its signature sees the method's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tell = [ear.listen(args, kwargs) for ear in self.listeners]
        result = self.method(*args, **kwargs)
        for then in tell:
            if then is not None:
                then(result)
        return result


class _Ear:
    """One listener at one method."""

    def __init__(self, owner: object, name: str, listen: Listener) -> None:
        self._owner, self._name, self.listen = owner, name, listen
        found = vars(owner).get(name)
        self._overheard = found if isinstance(found, _Overheard) else _Overheard(owner, name)
        self._overheard.listeners.append(self)
        if found is not self._overheard:
            object.__setattr__(owner, name, self._overheard)

    def remove(self) -> None:
        """Stop listening; the last one leaves the object as it was."""
        self._overheard.listeners.remove(self)
        mine = vars(self._owner).get(self._name) is self._overheard
        if self._overheard.listeners or not mine:
            return
        if self._overheard.before is _ABSENT:
            object.__delattr__(self._owner, self._name)
        else:
            object.__setattr__(self._owner, self._name, self._overheard.before)


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

    def before_call(
        self, module: Hookable, call: Callable[[Arguments, Keywords], None], first: bool = False
    ) -> None:
        """Call call(args, kwargs) before each forward of a module; `first` is before every hook that changes them."""

        def hook(_module: Any, args: Arguments, kwargs: Keywords) -> None:
            call(args, kwargs)

        self._handles.append(
            module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
        )

    def finally_after(self, module: Hookable, call: Callable[[], None]) -> None:
        """Call call() after each forward of a module, also of one that raises."""

        def hook(_module: Any, _inputs: Any, _output: Any) -> None:
            call()

        self._handles.append(module.register_forward_hook(hook, always_call=True))

    def change(self, module: Hookable, change: Callable[[Any], Any]) -> None:
        """Replace the output of each forward of a module by what `change` makes of it; None leaves it."""

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            return change(output)

        self._handles.append(module.register_forward_hook(hook))

    def change_answer(
        self, module: Hookable, change: Callable[[Arguments, Keywords, Any], Any]
    ) -> None:
        """Replace the output of each forward by what `change` makes of args, kwargs and output; None leaves it."""

        def hook(_module: Any, args: Arguments, kwargs: Keywords, output: Any) -> Any:
            return change(args, kwargs, output)

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def change_call(
        self,
        module: Hookable,
        change: Callable[[Arguments, Keywords], tuple[Arguments, Keywords] | None],
    ) -> None:
        """Replace the arguments of each forward of a module by what `change` makes of them; None leaves them."""

        def hook(_module: Any, args: Arguments, kwargs: Keywords) -> Any:
            return change(args, kwargs)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def around(self, owner: object, name: str, listen: Listener) -> None:
        """Listen to the calls of one object's method; the object's class stays as it is.

        Args:
            owner: whose method it is.
            name: of the method.
            listen: called with args and kwargs before each call; what it returns, if anything, is called with
                the result.
        """
        self._handles.append(_Ear(owner, name, listen))

    def remove(self) -> None:
        """Take all hooks away, the last one first; a second call does nothing.

        One that cannot be removed keeps no other in place; the first such error is raised at the end.
        """
        errors = []
        while self._handles:
            try:
                self._handles.pop().remove()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

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
        """Take all hooks away; what was raised inside stays what is raised."""
        try:
            self.remove()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"and a hook could not be removed: {failure!r}")
