"""What a network returns and which of it is explained: single tensors, tuples, named outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nrm_graph.errors import InputError

Choice = str | int | Sequence[str | int] | None
"""Name or position of an output, several of them, or None for the only one."""


def leaves(value: object, name: str = "") -> list[tuple[str, Tensor]]:
    """Tensors of what a network returns, with their names: keys and positions joined by dots.

    What is neither a tensor nor a container (a cache, say) is left out.
    """
    if isinstance(value, Tensor):
        return [(name or "output", value)]
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        pairs = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = list(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        pairs = [(str(i), part) for i, part in enumerate(value)]
    elif is_dataclass(value) and not isinstance(value, type):
        pairs = [(f.name, getattr(value, f.name)) for f in fields(value)]
    return [leaf for key, part in pairs for leaf in leaves(part, f"{name}.{key}" if name else key)]


def chosen(returned: object, output: Choice) -> list[tuple[str, Tensor]]:
    """Tensors to explain among what a network returns.

    Raises
    ------
    InputError
        If the choice is not among them, or is needed and not made.
    """
    floats = [(name, t) for name, t in leaves(returned) if t.is_floating_point()]
    listed = ", ".join(f"{name} of shape {tuple(t.shape)}" for name, t in floats) or "none"
    if output is None:
        if len(floats) == 1:
            return floats
        if not floats:
            raise InputError(
                f"the network returns {_kind(returned)}: expected a tensor of floats, or several; "
                "wrap it in a module that returns the tensor to explain"
            )
        raise InputError(
            f"the network returns {len(floats)} tensors: {listed}; say which to explain, "
            f'output="{floats[0][0]}", or several, output=["{floats[0][0]}", "{floats[1][0]}"]'
        )
    names = list(output) if isinstance(output, list | tuple) else [output]
    result = []
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise InputError(f"output must be names or positions of outputs, found {name!r}")
        if isinstance(name, int) and not 0 <= name < len(floats):
            raise InputError(f"there is no output {name}: the network returns {listed}")
        match = [floats[name]] if isinstance(name, int) else [p for p in floats if p[0] == name]
        if not match:
            raise InputError(f"there is no output {name!r}: the network returns {listed}")
        result += match
    if len({name for name, _ in result}) < max(1, len(names)):
        raise InputError(f"output must name different outputs, found {output!r}")
    return result


def _kind(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of {str(returned.dtype).removeprefix('torch.')}"
    return "nothing" if returned is None else f"a {type(returned).__name__} without floats"


class Chosen(nn.Module):
    """A network that takes its arguments in order and returns one tensor.

    Attributes
    ----------
    network : nn.Module
        The network.
    names : tuple of str, or None
        Keywords of its arguments; None if they are given by position.
    output : str, int, sequence of them, or None
        Of its outputs, what to return: several as one row of numbers per sample.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...] | None, output: Choice) -> None:
        super().__init__()
        self.network, self.names, self.output = network, names, output

    def parts(self, *inputs: Tensor) -> list[tuple[str, Tensor]]:
        """Return the outputs to explain, by name."""
        if self.names is None:
            return chosen(self.network(*inputs), self.output)
        named = dict(zip(self.names, inputs, strict=True))
        return chosen(self.network(**named), self.output)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the output, or several side by side."""
        outputs = [tensor for _, tensor in self.parts(*inputs)]
        if len(outputs) == 1:
            return outputs[0]
        return torch.cat([out.reshape(out.shape[0], -1) for out in outputs], 1)
