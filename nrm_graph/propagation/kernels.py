"""Kernels of one batch: how every layer shares its relevance among what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nrm_graph.errors import CompositeError
from nrm_graph.network.maps.linear import Moving
from nrm_graph.propagation.state import copied
from nrm_graph.propagation.tensor_sums import total
from nrm_graph.rules.base import Decisions, Kernel, Signs, evaluated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.propagation.state import State
    from nrm_graph.rules.base import Group, Rule


def kernel_of(state: State, name: str) -> Kernel:
    """Kernel of a weighing operation, computed once per state.

    Where weights are in half precision only that of the last operation is kept: all of them
    together would be the network in float32, and its activations once more.
    """
    kernel = state.kernels.get(name)
    if kernel is None:
        make = _computed if state.single is None else _kernel_of_copies
        kernel = make(state, name)
        if state.network.narrow:
            state.kernels.pop(state.last, None)
            state.last = name
        state.kernels[name] = kernel
    return kernel


def _computed(state: State, name: str) -> Kernel:
    """Kernel that a layer's rule gives for a batch."""
    net = state.network
    op, rule = net.layout.weighings[name], net.rules[net.layout.layer_of[name]]
    assert rule is not None
    known = net.non_negative[state.positive]
    ignoring = net.composite.bias == "ignored"
    # Where biases are left out, a positive output may be a negative sum of what is left.
    silent = name in net.silent and not ignoring
    at = Signs(tuple(operand in known for operand in op.operands), silent, ignoring)
    with torch.no_grad():
        whole = resolved(state, name) if op.moving else None
        xs, left = operands_left(state, name)
        z = output_left(state, name, xs, whole)
        groups = net.groups.get((name, at))
        if groups is None:
            whole = resolved(state, name, rule.own_weights) if whole is None else whole
            groups = rule.groups(replace(whole, bias=None) if ignoring else whole, at)
            _check_ignored(rule, groups, ignoring)
            # Weights that depend on the input are made for every batch; those in half precision
            # are not kept in another.
            if not (op.moving or op.narrow):
                net.groups[name, at] = groups
        decisions = _decisions(state, name)
        unplaced = rule.unplaced(z if decisions is None else decisions.z.to(z.dtype), at)
        unplaced = _unplaced(state, name, unplaced)
        kernel = evaluated(groups, op, xs, z, unplaced, decisions, left)
        held = None if ignoring else _share_held(state, op, kernel)
        lost = rule.remainder(op if whole is None else whole, xs, z)
        return kernel._replace(held=held, remainder=lost)


def _decisions(state: State, name: str) -> Decisions | None:
    """Signs that a rule branched on in the other precision, whose decisions are kept."""
    if state.decided is None:
        return None
    device = state.values[name].device
    denominators = tuple(share.d.to(device) for share in kernel_of(state.decided, name).shares)
    xs, _ = operands_left(state.decided, name)
    z = output_left(state.decided, name, xs, None)
    return Decisions(z.to(device), denominators)


def _check_ignored(rule: Rule, groups: tuple[Group, ...], ignoring: bool) -> None:
    """Refuse a rule that gives to a bias what the composite leaves out."""
    if ignoring and any(g.bias is not None or g.following_bias is not None for g in groups):
        raise CompositeError(
            f"the rule {type(rule).__name__} gives a share to a bias, which a composite with "
            "bias='ignored' leaves out: expected no bias where signs.ignoring is true"
        )


def operands_left(state: State, name: str) -> tuple[list[Tensor], list[Tensor | None] | None]:
    """Operands of a layer, and where they count: constants may be left out."""
    op = state.network.layout.weighings[name]
    xs = [bounded(state, operand) for operand in op.operands]
    if state.network.composite.bias == "absorbed":
        return xs, None
    marks = [state.constant.get(operand) for operand in op.operands]
    left = [None if m is None else (m == 0).to(x.dtype) for m, x in zip(marks, xs, strict=True)]
    return [x if t is None else x * t for x, t in zip(xs, left, strict=True)], left


def output_left(state: State, name: str, xs: Sequence[Tensor], whole: Weighing | None) -> Tensor:
    """Output of a layer; without its bias and constants, where those are left out."""
    z: Tensor = state.values[name]
    op = state.network.layout.weighings[name]
    constants = any(operand in state.constant for operand in op.operands)
    if state.network.composite.bias == "absorbed" or not (constants or op.bias is not None):
        return z
    if op.kind == "softmax":  # no sum of what it reads
        return z
    if name in state.left:
        return state.left[name]
    whole = resolved(state, name, as_held=True) if whole is None else whole
    parts = [kind.apply(x, w) for kind, x, w in zip(op.maps, xs, whole.tensors, strict=True)]
    rest = total(parts).expand_as(z)
    if name in state.network.unbounded:  # a mask that is added hides
        return torch.where(z.isinf(), z, rest)
    return rest


def _kernel_of_copies(state: State, name: str) -> Kernel:
    """Kernel of a state of copies; that of one sample, wherever it broadcasts."""
    assert state.single is not None
    kernel, op = kernel_of(state.single, name), state.network.layout.weighings[name]
    batches = state.network.layout.batches
    if all(batches[value].plain for value in (name, *op.operands)):
        return kernel
    z = state.single.values[name]
    n = batches[name].samples(state.values[name]).shape[0]

    def above(value: Tensor) -> Tensor:
        return copied(batches[name], value.expand_as(z), n)

    def moved(weight: Tensor, like: str | None) -> Tensor:
        keeps = like is not None and weight.ndim == state.values[like].ndim
        return copied(batches[like], weight, n) if keeps and like is not None else weight

    shares = []
    for share in kernel.shares:
        terms = tuple(
            term._replace(
                x=copied(batches[op.operands[term.operand]], term.x, n),
                weight=moved(term.weight, op.like(term.operand)),
            )
            for term in share.terms
        )
        bias = share.bias
        if isinstance(op.bias, Moving) and bias is not None:
            bias = moved(bias, op.bias.like)
        shares.append(replace(share, terms=terms, d=above(share.d), bias=bias))
    rest = (kernel.unplaced, kernel.held, kernel.remainder)
    return Kernel(tuple(shares), *[None if v is None else above(v) for v in rest])


def bounded(state: State, name: str) -> Tensor:
    """Value of an operand, 0 where scores are hidden by -inf."""
    value: Tensor = state.values[name]
    return value.masked_fill(value.isinf(), 0.0) if name in state.network.unbounded else value


def resolved(state: State, name: str, as_held: bool = False) -> Weighing:
    """Give an operation's weights their values; a mask that is added hides and holds nothing."""
    op = state.network.layout.weighings[name].resolved(state.values[name], state.values, as_held)
    if name not in state.network.unbounded or op.shift is None:
        return op
    return replace(op, bias=op.shift.masked_fill(op.shift.isinf(), 0.0))


def _unplaced(state: State, name: str, unplaced: Tensor | None) -> Tensor | None:
    """Share that a rule cannot place: all of what is -inf, where nothing divides."""
    if name not in state.network.unbounded:
        return unplaced
    z: Tensor = state.values[name]
    hidden = z.isinf().to(z.dtype)
    return hidden if unplaced is None else unplaced.masked_fill(z.isinf(), 1.0)


def _share_held(state: State, op: Weighing, kernel: Kernel) -> Tensor | None:
    """Share that a rule gives to routed-in constants: constants hold it, so it is bias."""
    share_held: Tensor | None = None
    for share in kernel.shares:
        for term in share.terms:
            marked = state.constant.get(op.operands[term.operand])
            if marked is not None:
                part = (
                    op.maps[term.operand].apply(term.x * (marked != 0), term.weight) * share.factor
                )
                share_held = part if share_held is None else share_held + part
    return share_held


def awake(state: State, name: str) -> Tensor | None:
    """Neurons of a layer that may hold relevance, ``(N, *shape)``; None for all.

    Where a layer is silent no walk reaches what is not positive, and its rule gives no kernel
    there.
    """
    if name not in state.network.silent:
        return None
    decisive = state if state.decided is None else state.decided
    return state.samples(name, decisive.values[name].to(state.values[name].device)) > 0
