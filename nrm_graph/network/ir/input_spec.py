"""What a network takes: one tensor or several, floats or whole numbers.

A network of one input takes a tensor; one of several takes a tuple in the order of forward's
arguments, or a mapping by their names.  Whole numbers (token ids, masks) stay what they are;
everything else gets the dtype of the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrm_graph.errors import InputError
from nrm_graph.network.ir.held_weights import held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nrm_graph.network.ir.program import Program

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""What a user gives as one input of a network."""

Names = tuple[str, ...] | None

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class InputSpec:
    """Inputs of a network.

    Attributes
    ----------
    names : tuple of str
        Names of forward's arguments, in order.
    shapes : tuple of shape
        Of one sample, without the batch axis.
    kinds : tuple of {"float", "int64", "bool"}
        ``float`` is cast to the dtype of the network.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether it is one input of floats."""
        return self.kinds == ("float",)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for ``store.json``."""
        return [
            {"name": name, "shape": list(shape), "dtype": kind}
            for name, shape, kind in zip(self.names, self.shapes, self.kinds, strict=True)
        ]

    def samples(self, x: Inputs, dtype: torch.dtype, what: str = "x") -> tuple[Tensor, ...]:
        """Bring one input to batches of one, in the network's dtype.

        Parameters
        ----------
        x : tensor, sequence or mapping of tensors
            With or without a batch axis of 1.
        dtype : torch.dtype
            Of the network's floats.
        what : str
            What to call it in messages.

        Raises
        ------
        InputError
            If a tensor is missing, is more than one sample, or holds floats for whole numbers.
        """
        batches = []
        for k, tensor in enumerate(arranged(x, self.names, what)):
            shape = self.shapes[k]
            if tensor.ndim == len(shape):
                tensor = tensor.unsqueeze(0)
            if tensor.ndim == len(shape) + 1 and tensor.shape[0] != 1:
                raise InputError(f"expected one input, found a batch of {tensor.shape[0]}")
            batches.append(self.cast(k, tensor, dtype))
        return tuple(batches)

    def cast(self, k: int, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Give a tensor the type of input k.

        Raises
        ------
        InputError
            If it holds floats where whole numbers are expected.
        """
        if self.kinds[k] == "float":
            return tensor.to(dtype)
        return whole(tensor, self.names[k], self.kinds[k])


def input_spec(program: Program, examples: Sequence[Tensor] | None = None) -> InputSpec:
    """Return what a program takes; what it was traced with tells masks from numbers."""
    return InputSpec(
        tuple(name for name, _ in program.inputs),
        tuple(shape for _, shape in program.inputs),
        tuple(
            "float"
            if name not in program.integers
            else "bool"
            if examples is not None and examples[k].dtype == torch.bool
            else "int64"
            for k, (name, _) in enumerate(program.inputs)
        ),
    )


def whole(tensor: Tensor, name: str, kind: str = "int64") -> Tensor:
    """Return whole numbers as int64; booleans stay what they are.

    Raises
    ------
    InputError
        If the tensor holds floats.
    """
    if tensor.dtype not in _WHOLE:
        raise InputError(
            f"the input {name!r} takes whole numbers (token ids, masks), found {tensor.dtype}: "
            "pass them as int64"
        )
    if kind == "bool" and bool(((tensor != 0) & (tensor != 1)).any()):
        raise InputError(f"the input {name!r} is a mask: expected booleans, or 0 and 1")
    if kind == "bool" or tensor.dtype == torch.bool:
        return tensor.to(torch.bool)
    return tensor.to(torch.int64)


def arranged(x: Inputs, names: Sequence[str], what: str = "x") -> tuple[Tensor, ...]:
    """Bring the tensors of an input to the order of the names.

    Raises
    ------
    InputError
        If one is missing, there are too many, or something is no dense real tensor.
    """
    listed = ", ".join(names)
    if isinstance(x, Mapping):
        missing = [name for name in names if name not in x]
        foreign = [str(name) for name in x if name not in names]
        if missing or foreign:
            raise InputError(
                f"{what} names the inputs {', '.join(map(str, x)) or 'none'}, expected {listed}: "
                "the network takes these"
            )
        xs: tuple[Any, ...] = tuple(x[name] for name in names)
    else:
        xs = tuple(x) if isinstance(x, tuple | list) else (x,)
    for tensor in xs:
        check_tensor(tensor, what)
    if len(xs) != len(names):
        raise InputError(
            f"{what} holds {len(xs)} tensor{'s' * (len(xs) != 1)}, expected {len(names)}: "
            f"the network takes {listed}"
        )
    return xs


def fitting(program: Program, x: Inputs) -> dict[str, Tensor]:
    """Return a batch of inputs by name.

    Raises
    ------
    InputError
        If one is missing or of another shape or size, or a float is NaN or infinite.
    """
    names = [name for name, _ in program.inputs]
    xs = dict(zip(names, arranged(x, names, "the input"), strict=True))
    for name, shape in program.inputs:
        tensor, which = xs[name], f" {name}" if len(names) > 1 else ""
        if tuple(tensor.shape[1:]) != shape or not tensor.ndim:
            one = f"the input {name}" if which else "an input"
            raise InputError(f"expected {one} of shape {shape}, found {tuple(tensor.shape[1:])}")
        if name in program.integers:
            whole(tensor, name)
        elif not torch.isfinite(tensor).all():
            raise InputError(f"the input{which} holds NaN or infinity")
    sizes = {name: tensor.shape[0] for name, tensor in xs.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"expected as many samples in every input, found {sizes}")
    return xs


def check_tensor(tensor: object, what: str) -> None:
    """Refuse what is no dense real tensor with data.

    Raises
    ------
    InputError
        Saying what was found.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"{what} must be a torch tensor, or a tuple or mapping of tensors for a network of "
            f"several inputs, found {type(tensor).__name__}"
        )
    if tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
        raise InputError(
            f"{what} must be a dense real tensor with data, found {tensor.dtype} {tensor.layout}"
        )


def in_order(
    model: torch.nn.Module, x: Inputs, what: str = "x"
) -> tuple[Names, tuple[Tensor, ...]]:
    """Bring the tensors of an input to the order of forward's arguments, before it is traced.

    Returns
    -------
    names : tuple of str, or None
        Keywords, where the arguments are not simply the first ones.
    xs : tuple of Tensor

    Raises
    ------
    InputError
        If a name is none of its arguments.
    """
    if not isinstance(x, Mapping):
        tensors = tuple(x) if isinstance(x, tuple | list) else (x,)
        for tensor in tensors:
            check_tensor(tensor, what)
        return None, tensors
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    foreign = [str(name) for name in x if name not in named]
    if not x or (foreign and not any(p.kind is p.VAR_KEYWORD for p in parameters)):
        raise InputError(
            f"{what} names the inputs {', '.join(map(str, x)) or 'none'}, expected names of "
            f"forward's arguments: {', '.join(named) or 'it has none'}"
        )
    names = tuple(name for name in named if name in x) + tuple(foreign)
    leading = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[: len(x)]
    return None if names == leading else names, arranged(x, names, what)


def candidates(xs: Sequence[Tensor], like: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Examples to trace a network with: whole numbers as floats and as they are.

    A network says by itself what it takes: an embedding refuses floats, a convolution whole
    numbers.  A lone input is taken for floats as long as that may be; among several, whole
    numbers are taken for masks and token ids, but for pixels (uint8).

    Parameters
    ----------
    xs : sequence of Tensor
        What the user gave.
    like : Tensor
        A parameter of the network: dtype of floats, and device.
    """
    whole_kinds = {x.dtype for x in xs if not x.is_floating_point()}
    numbers = whole_kinds - {torch.uint8}
    choices = [set(), numbers, whole_kinds] if len(xs) == 1 else [numbers, set(), whole_kinds]
    # A network may keep a parameter in another precision than it takes: the caller's, then.
    float_kind = next((x.dtype for x in xs if x.is_floating_point()), like.dtype)
    for kind in dict.fromkeys((like.dtype, float_kind)):
        for i, keep in enumerate(choices):
            if keep not in choices[:i]:
                yield tuple(
                    whole(x, "x").to(like.device) if x.dtype in keep else x.to(like.device, kind)
                    for x in xs
                )


def precision(program: Program) -> torch.dtype:
    """Dtype of a pass: that of the network, but never less than float32."""
    floats = {w.dtype for w in held(program.weights).values() if w.is_floating_point()}
    return torch.float64 if torch.float64 in floats else torch.float32
