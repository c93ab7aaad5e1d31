"""Running eagerly for a while: hooks of a compiled model are silent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_stance_lock = threading.Lock()
_stance_users = 0
_stance: Any = None


@contextmanager
def eager() -> Iterator[None]:
    """Compiled models run eagerly inside; those who ask for it may end in any order.

    Without torch._dynamo in memory nothing is compiled, and the two seconds of its import are saved.
    """
    global _stance, _stance_users
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _stance_lock:
        if _stance_users == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _stance_users += 1
    try:
        yield
    finally:
        with _stance_lock:
            _stance_users -= 1
            if _stance_users == 0:
                _stance.__exit__(None, None, None)
                _stance = None
