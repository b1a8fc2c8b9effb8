"""A relevance database of a neural network: the Normalized Relevance Measure (arXiv:2606.00557)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nrm_graph._version import __version__ as __version__
from nrm_graph.errors import (
    CompositeError,
    EventError,
    InputError,
    NrmError,
    QueryError,
    StoreError,
    TraceError,
    UndefinedConditional,
)

if TYPE_CHECKING:
    from nrm_graph import circuits, evaluate, plots, rules
    from nrm_graph.database import Database, open
    from nrm_graph.events.serialization import from_json as event_from_json
    from nrm_graph.events.serialization import to_json as event_to_json
    from nrm_graph.events.sets import Edge, Event, Layer, stay
    from nrm_graph.explorer.serve import explore
    from nrm_graph.extraction.extract import extract
    from nrm_graph.language.language_model import LanguageModel
    from nrm_graph.language.loading import load_model
    from nrm_graph.measures.create import measure
    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.ir.operations import register_operation
    from nrm_graph.network.tracing.trace import trace
    from nrm_graph.rules import composites
    from nrm_graph.store.naming import name_units
    from nrm_graph.store.open_tables import join
    from nrm_graph.store.program_files import load_program, save_program
    from nrm_graph.store.write.compaction import compact
    from nrm_graph.store.write.deletion import delete

# What needs numpy or torch is imported at first use: help does without both, opening a store and
# SQL without torch.
_LAZY = {
    "compact": ("nrm_graph.store.write.compaction", "compact"),
    "Database": ("nrm_graph.database", "Database"),
    "delete": ("nrm_graph.store.write.deletion", "delete"),
    "event_from_json": ("nrm_graph.events.serialization", "from_json"),
    "event_to_json": ("nrm_graph.events.serialization", "to_json"),
    "Edge": ("nrm_graph.events.sets", "Edge"),
    "Event": ("nrm_graph.events.sets", "Event"),
    "Layer": ("nrm_graph.events.sets", "Layer"),
    "stay": ("nrm_graph.events.sets", "stay"),
    "explore": ("nrm_graph.explorer.serve", "explore"),
    "extract": ("nrm_graph.extraction.extract", "extract"),
    "open": ("nrm_graph.database", "open"),
    "join": ("nrm_graph.store.open_tables", "join"),
    "register_operation": ("nrm_graph.network.ir.operations", "register_operation"),
    "LanguageModel": ("nrm_graph.language.language_model", "LanguageModel"),
    "load_model": ("nrm_graph.language.loading", "load_model"),
    "load_program": ("nrm_graph.store.program_files", "load_program"),
    "Measure": ("nrm_graph.measures.measure", "Measure"),
    "measure": ("nrm_graph.measures.create", "measure"),
    "name_units": ("nrm_graph.store.naming", "name_units"),
    "save_program": ("nrm_graph.store.program_files", "save_program"),
    "trace": ("nrm_graph.network.tracing.trace", "trace"),
}
_MODULES = {
    "circuits": "nrm_graph.circuits",
    "composites": "nrm_graph.rules.composites",
    "evaluate": "nrm_graph.evaluate",
    "plots": "nrm_graph.plots",
    "rules": "nrm_graph.rules",
}


def __getattr__(name: str) -> Any:
    """Import what needs numpy, torch or matplotlib when it is first asked for."""
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'nrm_graph' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what is public, imported already or not: for completion."""
    return sorted(__all__)


__all__ = [
    "CompositeError",
    "Database",
    "Edge",
    "Event",
    "EventError",
    "InputError",
    "LanguageModel",
    "Layer",
    "Measure",
    "NrmError",
    "QueryError",
    "StoreError",
    "TraceError",
    "UndefinedConditional",
    "circuits",
    "compact",
    "composites",
    "delete",
    "evaluate",
    "event_from_json",
    "event_to_json",
    "explore",
    "extract",
    "join",
    "load_model",
    "load_program",
    "measure",
    "name_units",
    "open",
    "plots",
    "register_operation",
    "rules",
    "save_program",
    "stay",
    "trace",
]
