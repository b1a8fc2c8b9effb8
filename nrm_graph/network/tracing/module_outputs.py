"""Which value each call of a module ends with, for the names that layers go by."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from nrm_graph.network.ir.program import Node


@contextmanager
def passed_through(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Record the module calls that return their input: dropout and identity leave no node.

    Yields
    ------
    list of (call, call before)
        Of the last run, in order; calls are ``path``, ``path@1``, ...
    """
    same: list[tuple[str, str]] = []
    calls: dict[str, int] = {}
    # By id, which is another tensor's when the first is gone: then the reference leads nowhere.
    returned: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def clear(*_: object) -> None:
        for record in (same, calls, returned):
            record.clear()

    def hook(path: str) -> Any:
        def record(_: nn.Module, args: tuple[object, ...], out: object) -> None:
            number = calls[path] = calls.get(path, -1) + 1
            call = f"{path}@{number}" if number else path
            if not isinstance(out, Tensor):
                return
            reference, before = returned.get(id(out), (None, ""))
            if args and out is args[0] and reference is not None and reference() is out:
                same.append((call, before))
            returned[id(out)] = (weakref.ref(out), call)

        return record

    handles = [model.register_forward_pre_hook(clear)]
    handles += [
        module.register_forward_hook(hook(path))
        for path, module in model.named_modules()
        if path and not any(module.children())
    ]
    try:
        yield same
    finally:
        for handle in handles:
            handle.remove()
        returned.clear()


def module_outputs(
    nodes: Sequence[Node], leaves: set[str], same: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Value that each call of a module without children ends with."""
    last = {
        node.call.rpartition("/")[2]: node.name
        for node in nodes
        if node.module and node.module in leaves
    }
    for call, before in same:
        if call not in last and before in last:
            last[call] = last[before]
    return tuple((value, call) for call, value in last.items())
