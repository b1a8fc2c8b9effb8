"""A store opened for reading: SQL, exact measures of its inputs, and what many inputs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nrm_graph.circuits import (
    circuit,
    clusters,
    concepts,
    contrast,
    mean_joint,
    prototypes,
    references,
    stability,
)
from nrm_graph.store import materialize, measure, open_tables, subgraph, verify
from nrm_graph.store.view import View

if TYPE_CHECKING:
    import os

    from nrm_graph.store.named_weights import Given


def open(path: str | os.PathLike[str], *, weights: Given = None) -> Database:
    """Open a store read-only, as a snapshot of what is committed now.

    Parameters
    ----------
    path : path
        Folder of the store.
    weights : path, list of paths, or mapping of str to Tensor, optional
        Of a store that was made with ``weights="named"``, what it does not hold: files of
        safetensors, or tensors such as ``model.state_dict()``.  They are known by their content,
        and needed for exact answers alone.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    InputError
        If a file of weights cannot be used, or the store holds its weights itself.
    """
    return Database(path, weights)


class Database(View):
    """A snapshot of a store; a context manager.

    It can be used after a fork, and be pickled and copied: the copy sees the same snapshot, and
    opens files and prepares networks of its own.

    SQL sees the tables ``inputs``, ``layers``, ``nodes``, ``edges``, ``failures`` (inputs that
    failed and were not stored later) and the views ``flows`` and ``units``, and for every condition
    that was materialized ``<name>_inputs``, ``<name>_nodes`` and ``<name>_edges``, with
    ``<name>_layers`` of reduced tables.

    Parameters
    ----------
    path : path
        Folder of the store.
    weights : path, list of paths, or mapping of str to Tensor, optional
        As in :func:`open`.

    Attributes
    ----------
    path : Path
        Folder of the store, absolute.
    meta : dict
        Content of ``store.json``.
    program : Program
        The traced network, which :func:`nrm_graph.extract` and :func:`nrm_graph.measure` take in
        place of a model.
    inputs, layers : Relation
        These tables.
    keys : tuple of str
        Keys of the inputs, each once.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged or of an unknown format.
    """

    program = property(measure.program)
    measure = measure.measure
    inputs = property(open_tables.inputs)
    keys = property(open_tables.keys)
    layers = property(open_tables.layers)
    files = open_tables.files
    connect = open_tables.connect
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
    concepts = concepts.concepts
    joint = mean_joint.joint
