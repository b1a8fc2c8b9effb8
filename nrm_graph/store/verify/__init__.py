"""Whether a store holds what was written, and whether what it holds can be true.

Bytes: sizes and SHA-256 of every file, page checksums.  Form: schemas, row counts, row groups,
order, references, finite numbers.  Content: conservation of relevance by unit, pseudo-unit and
cut, from the tables alone; and a sample of inputs computed again from the stored program.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from nrm_graph.errors import InputError, StoreError
from nrm_graph.progress import Progress
from nrm_graph.store.format.files import local_path
from nrm_graph.store.verify import conservation
from nrm_graph.store.verify.conditions import check_condition, check_conditions
from nrm_graph.store.verify.files import check_identities, check_settings, read_shards
from nrm_graph.store.verify.report import Finding, Findings, Place, Report
from nrm_graph.store.verify.tables import Rows, StoreFacts, check_tables

if TYPE_CHECKING:
    from nrm_graph.store.named_weights import Given
    from nrm_graph.store.view import View

__all__ = ["Finding", "Report", "verify"]

SAMPLE = 3


def verify(
    store: str | os.PathLike[str] | View,
    *,
    sample: int = SAMPLE,
    progress: bool = True,
    weights: Given = None,
) -> Report:
    """Check a store; what is committed now, whatever a snapshot saw.

    Parameters
    ----------
    store : path or Database
        The store.
    sample : int
        Number of inputs to compute again from the stored program, which needs torch; 0 for none.
    progress : bool
        Tell how far it has come once more than five seconds lie ahead: a bar, or lines where
        standard error is redirected.
    weights : path, list of paths, or mapping of str to Tensor, optional
        Of a store that names them alone, as in :func:`nrm_graph.open`; those of an open store by
        default.

    Returns
    -------
    Report
        Errors say what is wrong and where, notes what is worth knowing of a sound store.

    Raises
    ------
    StoreError
        If there is no store at all.  Damage is no exception, but a finding.

    Notes
    -----
    Memory is bounded by the rows of one input.  Conservation holds up to rounding: an error of
    less than about ``100 eps`` of the total variation of a layer, or of one above it, is seen by
    checksums alone; in tables of a condition, times its amplification.
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise InputError(f"sample must be a number of inputs, found {sample!r}")
    path = local_path(store if isinstance(store, str | os.PathLike) else store.path)
    if not (path / "store.json").exists():
        raise StoreError(f"there is no store at {path}: expected a folder with a store.json")
    findings = Findings()
    meta = check_settings(path, findings)
    if meta is None:
        return Report(path, findings.sorted())
    manifests = read_shards(path, findings)
    check_identities(manifests, findings)
    facts = StoreFacts(meta)
    entries = {entry.input_id: entry for m in manifests for entry in m.inputs}
    checked = check_conditions(path, meta, entries, findings)

    def content(nodes: Rows, edges: Rows, where: Place) -> None:
        if len(nodes["unit"]):
            sizes = np.bincount(nodes["layer_id"], np.abs(nodes["relevance"]))
            facts.variations[int(nodes["input_id"][0])] = float(sizes.max())
        try:
            for layer, problem in conservation.check(facts, nodes, edges):
                findings.error(problem, **where, layer=None if layer is None else facts.name(layer))
        except MemoryError:  # a stranger's store.json may describe any number of units
            units = f"{sum(row['n_units'] for row in meta['layers']):,}"
            findings.error(f"not checked: {units} units do not fit in memory", **where)

    total = sum(
        len(m.inputs) for shards in (manifests, *(c.manifests for c in checked)) for m in shards
    )
    with Progress("verify", total, "inputs", progress) as meter:
        for manifest in manifests:
            check_tables(path / "shards", manifest, facts, findings, content, meter.advance)
        for condition in checked:
            check_condition(condition, facts, meter.advance)
    recomputed = 0
    if sample and entries:
        from nrm_graph.store.verify.recompute import recompute

        if weights is None and not isinstance(store, str | os.PathLike):
            weights = store.weights
        recomputed = recompute(path, weights, sample, findings, progress)
    return Report(path, findings.sorted(), len(manifests), len(entries), recomputed, len(checked))
