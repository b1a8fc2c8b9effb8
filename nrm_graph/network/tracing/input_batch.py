"""Which axis of an input is the batch: what ``model(x)`` answers for it as given decides.

An input may be a batch of one, one sample without a batch axis, or a batch of several, which is
refused.  A network may run on both readings of one tensor, so what it answers is compared: fed
with one sample twice it must answer twice what it answers for the sample alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nrm_graph.errors import InputError, NrmError, TraceError, first_line
from nrm_graph.network.ir.held_weights import HALF
from nrm_graph.network.tracing.torch_modules import unguarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrm_graph.network.tracing.output_choice import Chosen

    Parts = list[tuple[str, Tensor]]

FULL, LOW = 1e-3, 0.1
"""Relative difference that the order of sums makes, in full and in half precision."""


@dataclass(frozen=True)
class Reading:
    """One way to read an input.

    Attributes
    ----------
    examples : tuple of Tensor
        Batches of one.
    alone, pair : list of (str, Tensor)
        What the network answers for them, and for each of them twice.
    """

    examples: tuple[Tensor, ...]
    alone: Parts
    pair: Parts


def read(model: Chosen, xs: tuple[Tensor, ...]) -> Reading:
    """Find the reading of an input in which the network answers for it as given.

    Of several inputs all or none have their batch axis.

    Parameters
    ----------
    model : Chosen
        The network, in evaluation mode.
    xs : tuple of Tensor
        Its inputs.

    Raises
    ------
    InputError
        If the input is a batch of several, or the network accepts it in neither reading.
    TraceError
        If the network answers for a batch of one otherwise than for larger ones, or differently
        each time.
    """
    sizes = {x.shape[0] if x.ndim else None for x in xs}
    single, flat = sizes == {1}, all(x.ndim == 1 for x in xs)
    given = _answer(model, xs)
    batched: Reading | str = "it lacks a batch axis of 1"
    if not isinstance(given, str):
        batched = _reading(model, xs, given) if single else batched
        # A vector is rather one sample: token ids, features.
        if isinstance(batched, Reading) and not flat:
            return batched
        if not flat:
            _refuse_several(model, xs, given)
    with_axis = tuple(x.unsqueeze(0) for x in xs)
    alone = _answer(model, with_axis)
    unbatched = alone if isinstance(alone, str) else _reading(model, with_axis, alone)
    if isinstance(unbatched, Reading) and (isinstance(given, str) or _same(given, unbatched.alone)):
        return unbatched
    if isinstance(batched, Reading):
        return batched
    if isinstance(given, str) and not isinstance(unbatched, Reading):
        if not isinstance(alone, str):
            raise TraceError(unbatched)
        reason = given if single or given == alone else f"{given}; and: {alone}"
        raise InputError(
            f"the model does not accept {'an input' if len(xs) == 1 else 'inputs'} of "
            f"{_shapes(xs)}, as given or with a batch axis in front: {reason}"
        )
    assert not isinstance(given, str)
    if isinstance(unbatched, Reading):
        raise InputError(
            f"the network reads an input of {_shapes(xs)} in two ways: as it is it answers "
            f"{_shown(given)}, as one sample in a batch of one, of {_shapes(with_axis)}, "
            f"{_shown(unbatched.alone)}; give it with the batch axis of 1 that is meant"
        )
    if flat:
        _refuse_several(model, xs, given)
    if single:
        raise TraceError(batched)
    if len(sizes) > 1:
        raise InputError(
            f"the network answers for inputs of {_shapes(xs)} as given, but not as one sample: "
            "give all of them with a batch axis of 1, or none"
        )
    raise TraceError(
        f"{type(model.network).__name__} answers for an input of {_shapes(xs)} as given, but its "
        f"first axis is not that of the batch, and it takes none in front ({unbatched}): give it "
        "to a module whose forward moves the batch from the front to its place"
    )


def _answer(model: Chosen, xs: tuple[Tensor, ...]) -> Parts | str:
    """Return the outputs for a batch, or why there are none; forward may change its inputs."""
    try:
        return [(n, out.clone()) for n, out in model.parts(*(x.clone() for x in xs))]
    except NrmError:
        raise
    except Exception as error:  # a network's own code can raise anything
        return first_line(error)


def _reading(model: Chosen, xs: tuple[Tensor, ...], alone: Parts) -> Reading | str:
    """Return the reading of batches of one, or why they are none."""
    with unguarded(model.network):
        pair = _answer(model, tuple(torch.cat([x, x]) for x in xs))
    name = type(model.network).__name__
    if isinstance(pair, str):
        return (
            f"{name} answers for one sample of {_shapes(xs)}, but not for a batch of two: {pair}; "
            "a fixed batch of 1, as of view(1, ...), of squeeze() without an axis or of a network "
            "that was exported so, does this: take the size of the batch from the input"
        )
    shapes = " and ".join(str(tuple(out.shape)) for _, out in pair)
    if not all(out.ndim and out.shape[0] == 2 for _, out in pair):
        return (
            f"{name} does not answer for a batch of two samples of {_shapes(xs)} one by one: its "
            f"output has the shape {shapes}, expected a first axis of 2"
        )
    if all(_same(alone, [(n, out[i : i + 1]) for n, out in pair]) for i in (0, 1)):
        return Reading(xs, alone, pair)
    again = _answer(model, xs)
    if isinstance(again, str) or not _same(alone, again):
        return (
            f"{name} answers differently each time that it is asked: it draws random numbers, or "
            "keeps a state from call to call; explain it without"
        )
    return (
        f"{name} answers for a batch of one otherwise than for the same sample in a batch of two: "
        f"{_shown(alone)} against {_shown([(n, out[:1]) for n, out in pair])}; a sample must not "
        "depend on the size of its batch or on what else is in it"
    )


def _refuse_several(model: Chosen, xs: tuple[Tensor, ...], given: Parts) -> None:
    """Refuse a batch of several: as given, the network answers for each of its rows alone."""
    sizes = {x.shape[0] if x.ndim else 1 for x in xs}
    (size, *others) = sizes
    if others or size == 1 or any(not out.ndim or out.shape[0] != size for _, out in given):
        return
    for i in (0, size - 1) if size else ():
        with unguarded(model.network):
            row = _answer(model, tuple(x[i : i + 1] for x in xs))
        if isinstance(row, str) or not _same(row, [(n, out[i : i + 1]) for n, out in given]):
            return
    raise InputError(
        f"expected one sample, found a batch of {size}, of {_shapes(xs)}: the network answers for "
        "each of its rows alone; give one of them (x[:1]), several to ng.extract as separate items "
        "(list(x), or a DataLoader), or what is one sample with its batch axis (x[None])"
    )


def _same(some: Parts, others: Parts) -> bool:
    """Whether two answers hold the same numbers, whatever their axes of size 1."""
    for (_, a), (_, b) in zip(some, others, strict=True):
        if a.numel() != b.numel():
            return False
        first, second = a.reshape(-1).double(), b.reshape(-1).double()
        if not a.numel() or not bool(torch.isfinite(first).all() & torch.isfinite(second).all()):
            continue  # no input is explained whose output is no number
        if not bool((first - second).abs().max() <= tolerance(a.dtype) * second.abs().max()):
            return False
    return True


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference, against the largest output, that the order of sums makes."""
    return LOW if dtype in HALF else FULL


def _shapes(xs: Sequence[Tensor]) -> str:
    return f"shape {' and '.join(str(tuple(x.shape)) for x in xs)}"


def _shown(parts: Parts) -> str:
    """Return the first numbers of an answer, with its shape."""
    _, out = parts[0]
    numbers = ", ".join(f"{v:.4g}" for v in out.reshape(-1)[:3].tolist())
    return f"{numbers}{', ...' if out.numel() > 3 else ''} (shape {tuple(out.shape)})"
