"""Exact measures from a store: its own program, weights and input tensors, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from nrm_graph import composites, propagate
from nrm_graph.errors import InputError, StoreError
from nrm_graph.exact import from_network
from nrm_graph.operations import SUPPORTED
from nrm_graph.program import Program, from_json
from nrm_graph.store import files

if TYPE_CHECKING:
    from nrm_graph.database import Database
    from nrm_graph.exact import Measure


def load_program(db: Database) -> Program:
    """Read the stored program; its hash and its operations are checked.

    Raises
    ------
    StoreError
        If it was changed, or names an operation outside the allow-list.
    """
    try:
        weights = safetensors.torch.load_file(db.path / "weights.safetensors")
        text = (db.path / "program.json").read_text("utf-8")
    except Exception as error:  # safetensors raises its own untyped errors
        raise StoreError(f"the program of {db.path} cannot be read: {error}") from None
    program = from_json(text, weights)
    foreign = sorted({node.op for node in program.nodes} - SUPPORTED)
    if foreign:
        raise StoreError(f"the program names operations that are not allowed: {foreign}")
    if program.hash() != db.meta.get("program_hash"):
        raise StoreError(f"the program of {db.path} is not the one it was made with")
    return program


def stored_measure(db: Database, identity: int, dtype: str | None, scale: str) -> Measure:
    """Measure of a committed input; see :meth:`nrm_graph.database.Database.measure`."""
    if dtype not in (None, "float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', found {dtype!r}")
    if scale not in ("unit", "logit"):
        raise InputError(f"scale must be 'unit' or 'logit', found {scale!r}")
    place = db._places[identity]
    x = torch.from_numpy(files.read_tensor(db.path, place).copy())[None]
    kind = x.dtype if dtype is None else getattr(torch, dtype)
    cache = db._network or {}
    if kind not in cache:
        program = load_program(db)
        net = propagate.network(program, composites.from_json(db.meta["composite"]), kind)
        cache[kind] = net
        db._network = cache
    return from_network(cache[kind], x.to(kind), place.target, db.units(), scale)
