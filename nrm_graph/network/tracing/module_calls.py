"""Which module of the network a node of an exported graph comes from, and in which call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class ModuleCalls:
    """Module paths and calls of an exported graph, which calls the network as a child.

    Attributes
    ----------
    prefix : str
        Name of that child.
    calls : dict of str to list of str
        The exporter's names of the calls of every module, in order.
    """

    prefix: str
    calls: dict[str, list[str]] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """Path inside the network of what the exporter saw inside the module around it."""
        return name.removeprefix(self.prefix).removeprefix(".")

    def where(self, fx: torch.fx.Node) -> tuple[str, str]:
        """Return the module path and the call of a node; calls are numbered as they come."""
        stack = (fx.meta.get("nn_module_stack") or {}).items()
        levels, raw, path = [], "", ""
        for key, (full, _) in stack:
            if not full.startswith(self.prefix):
                continue  # the module around the network
            path = self.path(full)
            raw = f"{raw}/{key}"
            calls = self.calls.setdefault(path, [])
            if raw not in calls:
                calls.append(raw)
            number = calls.index(raw)
            levels.append(f"{path}@{number}" if number else path)
        return path, "/".join(levels[1:])
