"""A store opened for reading: SQL, exact measures of its inputs, and what many inputs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.circuits import circuit, clusters, contrast, prototypes, references, stability
from nrm_graph.store import materialize, measure, subgraph, verify
from nrm_graph.store.view import View

if TYPE_CHECKING:
    import os


def open(path: str | os.PathLike[str]) -> Database:
    """Open a store read-only, as a snapshot of what is committed now.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """
    return Database(path)


class Database(View):
    """A snapshot of a store; a context manager.

    It can be used after a fork, and be pickled and copied: the copy sees the same snapshot, and
    opens files and prepares networks of its own.

    SQL sees the tables ``inputs``, ``layers``, ``nodes``, ``edges``, ``failures`` (inputs that
    failed and were not stored later) and the view ``flows``, and for every condition that was
    materialized ``<name>_inputs``, ``<name>_nodes`` and ``<name>_edges``.

    Parameters
    ----------
    path : path
        Folder of the store.

    Attributes
    ----------
    path : Path
        Folder of the store, absolute.
    meta : dict
        Content of ``store.json``.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """

    measure = measure.measure
    subgraph = subgraph.subgraph
    verify = verify.verify
    conditions = materialize.conditions
    drop = materialize.drop
    materialize = materialize.materialize
    circuit = circuit.circuit
    contrast = contrast.contrast
    stability = stability.stability
    clusters = clusters.clusters
    prototypes = prototypes.prototypes
    references = references.references
