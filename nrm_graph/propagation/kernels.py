"""Kernels of one batch: how every layer shares its relevance among what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nrm_graph.network.maps.linear import Moving
from nrm_graph.propagation.state import copied
from nrm_graph.rules.base import Decisions, Kernel, Signs, evaluated

if TYPE_CHECKING:
    from torch import Tensor

    from nrm_graph.network.maps.linear import Weighing
    from nrm_graph.propagation.state import State


def kernel_of(state: State, name: str) -> Kernel:
    """Kernel of a weighing operation, computed once per state."""
    kernel = state.kernels.get(name)
    if kernel is None:
        make = _computed if state.single is None else _kernel_of_copies
        kernel = state.kernels[name] = make(state, name)
    return kernel


def _computed(state: State, name: str) -> Kernel:
    """Kernel that a layer's rule gives for a batch."""
    net = state.network
    op, rule = net.layout.weighings[name], net.rules[net.layout.layer_of[name]]
    assert rule is not None
    known = net.non_negative[state.positive]
    at = Signs(tuple(operand in known for operand in op.operands), name in net.silent)
    z = state.values[name]
    with torch.no_grad():
        xs = [bounded(state, operand) for operand in op.operands]
        whole = resolved(state, name) if op.moving else None
        groups = net.groups.get((name, at))
        if groups is None:
            whole = resolved(state, name) if whole is None else whole
            groups = rule.groups(whole, at)
            if not op.moving:  # weights that depend on the input are made for every batch
                net.groups[name, at] = groups
        decisions = _decisions(state, name)
        unplaced = rule.unplaced(z if decisions is None else decisions.z.to(z.dtype), at)
        unplaced = _unplaced(state, name, unplaced)
        kernel = evaluated(groups, op, xs, z, unplaced, decisions)
        lost = rule.remainder(op if whole is None else whole, xs, z)
        return kernel._replace(held=_share_held(state, op, kernel), remainder=lost)


def _decisions(state: State, name: str) -> Decisions | None:
    """Signs that a rule branched on in the other precision, whose decisions are kept."""
    if state.decided is None:
        return None
    device = state.values[name].device
    denominators = tuple(share.d.to(device) for share in kernel_of(state.decided, name).shares)
    return Decisions(state.decided.values[name].to(device), denominators)


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


def resolved(state: State, name: str) -> Weighing:
    """Give an operation's weights their values; a mask that is added hides and holds nothing."""
    op = state.network.layout.weighings[name].resolved(state.values[name], state.values)
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
