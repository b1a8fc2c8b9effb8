"""One operation of an exported graph, on its way to the nodes of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from nrm_graph.network.ir.program import Batch


class Refused(Exception):
    """An operation cannot be converted: its name and why."""


@dataclass
class Step:
    """One operation of the exported graph, being converted.

    Attributes
    ----------
    fx : torch.fx.Node
        As exported.
    op : str
        Its name.
    args, kwargs
        As :class:`~nrm_graph.network.ir.program.Node` has them.
    moving : list of str
        Values among the arguments that carry relevance, with repetition.
    module, call : str
        See :class:`~nrm_graph.network.tracing.module_calls.ModuleCalls`.
    """

    fx: Any
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moving: list[str]
    module: str
    call: str

    def length(self, shape: tuple[int | Batch, ...], dim: int) -> int:
        """Size of an axis that is not the batch's.

        Raises
        ------
        Refused
            If it is the batch's.
        """
        size = shape[dim]
        if not isinstance(size, int):
            raise Refused(f"{self.op} over the batch")
        return size

    @property
    def dtype(self) -> torch.dtype:
        """Type of the result."""
        dtype: torch.dtype = self.fx.meta["val"].dtype
        return dtype
