"""Propagation rules: how a neuron's relevance is shared among what it reads.

:mod:`nrm_graph.rules.base` says what a rule consists of, :mod:`nrm_graph.rules.linear` has those
of zennit, :mod:`nrm_graph.rules.attention` those of products and of the softmax.

A rule of your own is a frozen dataclass with one method; :func:`register` lets stores name it.
"""

from __future__ import annotations

from nrm_graph.rules.attention import Hold, Pass, Softmax, Uniform
from nrm_graph.rules.base import Group, Part, Rule, Signs
from nrm_graph.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus
from nrm_graph.rules.registry import from_json, register

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Group",
    "Hold",
    "Norm",
    "Part",
    "Pass",
    "Rule",
    "Signs",
    "Softmax",
    "Uniform",
    "WSquare",
    "ZBox",
    "ZPlus",
    "from_json",
    "register",
]


def __dir__() -> list[str]:
    return sorted(__all__)
