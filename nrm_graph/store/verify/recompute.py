"""A sample of inputs, computed again from the stored program and compared with the tables."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from nrm_graph.errors import InputError, NotRegistered, NrmError, StoreError, UndefinedConditional
from nrm_graph.network import units
from nrm_graph.network.ir.validation import PROBLEMS
from nrm_graph.network.topology import BIAS, REMAINDER, STABILIZER
from nrm_graph.progress import Progress
from nrm_graph.store.measure import measure
from nrm_graph.store.read.conditions import FOLDER
from nrm_graph.store.verify.report import pair_of
from nrm_graph.store.view import View
from nrm_graph.tables.plan import plan
from nrm_graph.tables.unit_sums import mean_activations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.topology import Topology
    from nrm_graph.network.units import Partition
    from nrm_graph.store.named_weights import Given
    from nrm_graph.store.read.conditions import Condition
    from nrm_graph.store.read.snapshot import Snapshot
    from nrm_graph.store.verify.report import Findings, Place
    from nrm_graph.store.verify.tables import Rows

EPS = float(np.finfo(np.float32).eps)

_ABSORBING = {"bias": BIAS, "stabilizer": STABILIZER, "remainder": REMAINDER}

TOLERANCE = 1e-3
"""What recomputed sums may differ by, relative to the layer's sum of |R| at single neurons.

About 8,400 machine epsilons.  Another batch size alone changes the forward run's rounding, and
where a rule divides by sums that nearly vanish (epsilon) this is amplified: by up to 93 epsilons
on the demo network and 172 on a DenseNet-121 with random weights, both with batches of 16 against
one; 3 to 7 for gamma, a residual net, ResNet-18 and a trained VGG16.  Another machine or device
gets room for fifty times the worst of these.  A wrong weight or rule moves layers by percents."""


def recompute(path: Path, weights: Given, sample: int, findings: Findings, progress: bool) -> int:
    """Compare a sample of inputs, spread over all; return how many could be computed."""
    try:
        db = View(path, weights)
    except StoreError:
        findings.note("nothing was recomputed: the store cannot be opened as it is")
        return 0
    if db.weights is None and db.meta.get("named"):
        findings.note("nothing was recomputed: the store names its weights, and none were given")
        return 0
    with db, Progress("recompute", unit="inputs", shown=progress) as meter:
        chosen = _sampled(db, db._snapshot, sample)
        of_conditions = [
            (condition, _sampled(db, condition.snapshot, sample))
            for condition in db._conditions.values()
        ]
        meter.total = len(chosen) + sum(len(some) for _, some in of_conditions)
        recomputed = sum(_recompute_input(db, *one, findings) for one in meter.over(chosen))
        for condition, some in of_conditions:
            _recompute_condition(db, condition, meter.over(some), findings)
    return recomputed


def _sampled(db: View, snapshot: Snapshot, sample: int) -> list[tuple[int, Place]]:
    """Choose some inputs of the store or of a condition, spread over all, and where each lies."""
    ids = sorted(set(snapshot.entries) & set(db._snapshot.entries))
    places = np.linspace(0, len(ids), min(sample, len(ids)), endpoint=False).astype(int)
    return [
        (i, {"shard": snapshot.shard_of[i], **pair_of(snapshot.entries[i])})
        for i in (ids[place] for place in places)
    ]


def _recompute_condition(
    db: View, condition: Condition, sample: Iterable[tuple[int, Place]], findings: Findings
) -> None:
    """Compare a sample of a condition's inputs."""
    snapshot = condition.snapshot
    inside = findings.within(f"{FOLDER}/{condition.name.lower()}/shards")
    form = None
    if condition.nodes is not None:
        from nrm_graph.store.reduced_tables import ReducedForm
        from nrm_graph.store.verify.recompute_reduced import Recomputed

        try:
            form = Recomputed(condition.nodes.labels, ReducedForm(condition.nodes))
        except StoreError:
            return  # told by the check of its nodes
    for identity, where in sample:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told where the store's own tables are compared
                m = measure(db, identity)
            facts = snapshot.facts(identity)
            stored = {
                table: columns(snapshot.rows(identity, table)) for table in ("nodes", "edges")
            }
        except NotRegistered as error:
            inside.note(f"could not be recomputed: {error}", **where)
            continue
        except (NrmError, *PROBLEMS) as error:
            inside.error(f"cannot be recomputed: {error}", **where)
            continue
        before, rounding = facts["relevance"], facts.get("amplification")
        try:
            event = condition.event
            after = 1.0 if event is None else float(m(event))
            conditional = m if event is None else m.given(event)
        except UndefinedConditional:
            conditional = None
        except (NrmError, MemoryError, *PROBLEMS) as error:
            inside.error(f"cannot be recomputed: {error}", **where)
            continue
        limit = TOLERANCE * (rounding or 0.0) * abs(before or 0.0)
        if limit and abs(before - after) > limit:
            inside.error(f"recomputed, R(event) is {after:.9g}, stored is {before:.9g}", **where)
            continue
        if (conditional is None) == (facts["status"] == "defined"):
            now = "undefined" if conditional is None else "defined"
            inside.note(f"recomputed, it is {now}: near the limit of rounding", **where)
        if conditional is None or rounding is None:
            continue
        if form is None:
            _compare_nodes(conditional, stored["nodes"], inside, where, max(1.0, rounding))
        else:
            form.compare(conditional, stored, inside, where, TOLERANCE * max(1.0, rounding))


def _recompute_input(db: View, identity: int, where: Place, findings: Findings) -> bool:
    """Compare one input; whether it could be computed."""
    snapshot = db._snapshot
    try:
        snapshot.tensors(identity)
    except InputError:
        findings.note("could not be recomputed: the store holds no input tensors", **where)
        return False
    except StoreError:
        return False  # told by the tables' checks
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            m = measure(db, identity)
        for warning in caught:
            findings.error(str(warning.message), **where)
        if not _same_units(db, m, findings):
            return False
        nodes = snapshot.rows(identity, "nodes")
        predicted = int(snapshot.facts(identity)["predicted"])
    except NotRegistered as error:  # sound as far as one can tell without it
        findings.note(f"could not be recomputed: {error}", **where)
        return False
    except Exception as error:  # settings or a program that a stranger has made
        kind = "" if isinstance(error, NrmError) else f"{type(error).__name__}: "
        findings.error(f"cannot be recomputed: {kind}{error}", **where)
        return False
    _compare_prediction(m, predicted, findings, where)
    stored = columns(nodes)
    _compare_nodes(m, stored, findings, where)
    _compare_activations(m, stored, findings, where)
    return True


def columns(table: pa.Table) -> Rows:
    """Return the columns of a table as arrays."""
    return {name: table[name].to_numpy() for name in table.column_names}


def _same_units(db: View, m: Measure, findings: Findings) -> bool:
    """Whether ``store.json`` counts the units that its resolutions give."""
    wrong = [
        (row["name"], row["n_units"], part.n_units)
        for row, part in zip(db.meta["layers"], m.partitions, strict=True)
        if row["n_units"] != part.n_units
    ]
    for name, listed, counted in wrong:
        findings.error(
            f"the layer has {counted} units, expected {listed}", file="store.json", layer=name
        )
    return not wrong


def _compare_prediction(m: Measure, predicted: int, findings: Findings, where: Place) -> None:
    output = m.state.output[0].cpu().numpy()
    inside = 0 <= predicted < len(output)
    if not inside or output.max() - output[predicted] > TOLERANCE * np.abs(output).max():
        findings.error(
            f"the stored prediction is {predicted}, the program's {int(output.argmax())}", **where
        )


def _compare_nodes(
    m: Measure,
    stored: Rows,
    findings: Findings,
    where: Place,
    rounding: float = 1.0,
) -> None:
    """Compare nodes layer by layer: sums over channels must agree, single units may flip."""
    usual = units.automatic(m.topology)
    reported = {row["layer"]: row for row in m.report().to_pylist()}
    flipped: dict[str, int] = {}
    for layer, part, resolution in zip(m.topology.layers, m.partitions, usual, strict=True):
        values = m.marginal(layer.name, by="neuron").astype(np.float64).ravel()
        again = np.bincount(part.labels.ravel(), values, minlength=part.n_units)
        row = reported[layer.name]
        scale = np.abs(values).sum() + sum(abs(row[kind]) for kind in _ABSORBING)
        limit = TOLERANCE * scale * rounding
        in_layer = stored["layer_id"] == layer.layer_id
        unit, relevance = stored["unit"][in_layer], stored["relevance"][in_layer].astype(np.float64)
        stored_sums = np.zeros(part.n_units)
        stored_sums[unit[unit >= 0]] = relevance[unit >= 0]
        group, words = _groups(m.topology, layer.layer_id, part, resolution)
        count = int(group.max(initial=-1)) + 1
        sums: list[Any] = [np.bincount(group, v, minlength=count) for v in (stored_sums, again)]
        compared: tuple[tuple[str, Any, Any], ...] = (
            (words, sums[0], sums[1]),
            *(
                (kind, relevance[unit == number].sum(keepdims=True), np.array([row[kind]]))
                for kind, number in _ABSORBING.items()
            ),
        )
        differs = False
        for name, before, after in compared:
            deviation = np.abs(before - after)
            worst = int(np.argmax(deviation)) if len(deviation) else 0
            if len(deviation) and deviation[worst] > limit:
                differs = True
                findings.error(
                    f"recomputed, the relevance of {name} {worst} is {after[worst]:.9g}, stored "
                    f"is {before[worst]:.9g} (allowed: {limit:.2g})",
                    **where,
                    layer=layer.name,
                )
        flips = int((np.abs(stored_sums - again) > limit).sum())
        if flips and not differs and count < part.n_units:
            flipped[layer.name] = flips
    if flipped:
        listed = ", ".join(f"{n} of {name}" for name, n in flipped.items())
        findings.note(
            f"near-tied max-pools chose other neurons when recomputed: units {listed}", **where
        )


def _compare_activations(m: Measure, stored: Rows, findings: Findings, where: Place) -> None:
    """Compare mean activations, which no near tie changes by more than rounding."""
    table_plan = plan(m.network, m.partitions)
    for name, i in m.network.layout.layer_of.items():
        again = mean_activations(table_plan, m.state, name)[0]
        in_layer = (stored["layer_id"] == i) & (stored["unit"] >= 0)
        stored_means = np.zeros(len(again))
        stored_means[stored["unit"][in_layer]] = stored["activation"][in_layer]
        deviation = np.abs(stored_means - again)
        # Means may cancel; rounding is relative to the activations that they are made of.
        limit = TOLERANCE * float(m.state.values[name].abs().max())
        worst = int(np.argmax(deviation)) if len(deviation) else 0
        if len(deviation) and deviation[worst] > limit:
            findings.error(
                f"recomputed, the activation of unit {worst} is {again[worst]:.9g}, stored is "
                f"{stored_means[worst]:.9g} (allowed: {limit:.2g})",
                **where,
                layer=m.topology.layers[i].name,
            )


def _groups(topology: Topology, layer_id: int, part: Partition, resolution: str) -> tuple[Any, str]:
    """Units that are compared as one, and what to call them.

    Where a pool is nearly tied, another position may win on another machine or in another batch;
    its channel stays the same.
    """
    if part.resolution in ("channel", "feature", "head"):
        return np.arange(part.n_units), part.resolution
    if not part.single:  # a partition that may cut channels
        return np.zeros(part.n_units, np.int64), "the layer, group"
    coarse = units.partition(topology.layers[layer_id], resolution)
    group = np.zeros(part.n_units, np.int64)
    group[part.labels.ravel()] = coarse.labels.ravel()
    return group, "neuron" if coarse.single else coarse.resolution
