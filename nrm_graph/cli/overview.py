"""What a store holds, in words and numbers, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nrm_graph.events.unit_sets import unit_set
from nrm_graph.graphs.formats import to_arrow
from nrm_graph.network.topology import PSEUDO_UNITS
from nrm_graph.network.unit_names import UnitKind, unit_name
from nrm_graph.propagation.flags import counted, listed
from nrm_graph.store.format.schema import LAYERS, TABLES, VIEWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import networkx as nx

    from nrm_graph.database import Database
    from nrm_graph.measures.measure import Measure


ABSORBED = "share that ends in biases, stabilizers and remainders"
ANSWERED = {
    "relevance": "share of the logit, 1 in all",
    "absorbed": ABSORBED,
    "of the logit": "relevance x logit",
}
"""What facts of one input's answer mean."""
CONDITIONED = {
    "relevance": "share of the relevance of the condition",
    "amplification": "how far the condition's relevances cancel: rounding grows so many times",
    "absorbed": f"of the condition's relevance, the {ABSORBED}",
}
"""The same of a conditional answer."""
SHARED = {
    "share kept": "the edges shown, of the sum of |mean relevance| over all edges",
    "absorbed": f"mean {ABSORBED}",
}
"""What facts of a circuit mean."""
SHOWN = 8
"""Labels, and keys, that are named."""

_NAMES = 20  # of a layer that are listed


def facts(db: Database) -> dict[str, str]:
    """Return counts, settings and sizes of a store, in the order in which people read them.

    Parameters
    ----------
    db : Database
        An open store.

    Returns
    -------
    dict of str to str
        Names and values, each fit for one line.
    """
    counts = db.sql(
        "SELECT (SELECT count(*) FROM inputs), (SELECT count(DISTINCT key) FROM inputs), "
        "(SELECT count(*) FROM edges), (SELECT count(*) FROM failures)"
    ).fetchall()[0]
    counts = (*counts[:2], len({e.aim for e in db._snapshot.entries.values()}), *counts[2:])
    meta = db.meta
    found = {
        name: f"{count:,}"
        for name, count in zip(
            ("inputs", "keys", "targets", "edges", "failures"), counts, strict=True
        )
    }
    found |= {
        "labels": _labels(db),
        "some keys": _some(db.keys),
        "tables": _tables(db),
        "flags": flagged(db),
        "network": f"{len(meta['layers'])} layers, program {meta['program_hash'][:12]}",
        **_ends(db),
        "composite": composite(meta),
        "resolution": _resolution(meta),
        "pruning": _pruning(meta),
        **_kept(db),
        "precision": _precision(meta),
        "preprocessing": meta["preprocessing"] or "not known",
        **_named(meta),
        "classes": _classes(db),
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(meta["versions"].items())),
        "format": str(meta["format_version"]),
    }
    return found | _sizes(db, counts[3])


def _labels(db: Database) -> str:
    """Name the labels of most keys, and how many each has."""
    rows = db.sql(
        "SELECT label, count(DISTINCT key) AS keys FROM inputs GROUP BY label "
        "ORDER BY keys DESC, label"
    ).fetchall()
    rows = [(label, keys) for label, keys in rows if label is not None]
    if not rows:
        return "none"
    return f"{len(rows):,}: {_some([f'{_short(label)} ({keys:,})' for label, keys in rows])}"


def _some(names: Sequence[str]) -> str:
    """Name the first ones."""
    return ", ".join([*map(_short, names[:SHOWN]), *(["..."] if len(names) > SHOWN else [])])


def _tables(db: Database) -> str:
    """Name the tables of SQL, with the rows of those whose rows are in files and count quickly."""
    tables = db._tables()
    listed = sorted(tables.names, key=lambda name: (name not in VIEWS, name))
    quick = [name for name in listed if name in tables.loaded or not name.endswith("thresholds")]
    quick = [name for name in quick if name in tables.loaded or name in tables.of_files]
    counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in quick)
    rows = dict(zip(quick, db.sql(f"SELECT {counts}").fetchall()[0], strict=True))
    return ", ".join(f"{name} ({rows[name]:,})" if name in rows else name for name in listed)


def _named(meta: Mapping[str, Any]) -> dict[str, str]:
    """Say how many tensors of the network a store names and does not hold."""
    named = meta.get("named")
    return {"weights": f"{len(named):,} tensors are named, not held"} if named else {}


def flagged(db: Database) -> str:
    """Say how many inputs are flagged, by flag; see :mod:`nrm_graph.propagation.flags`."""
    every = [entry.flags for entry in db._snapshot.entries.values()]
    counts = listed(counted(every)) or "none"
    unknown = every.count(None)
    if unknown:
        counts = (
            f"not known of {unknown:,}" if counts == "none" else f"{counts}, {unknown:,} unknown"
        )
    return counts


def names(db: Database) -> list[str]:
    """Return the user's names of units, by layer."""
    return [
        f"{db.topology.layers[layer_id].name}: "
        + ", ".join(f"{unit} {name}" for unit, name in list(named.items())[:_NAMES])
        + (f" and {len(named) - _NAMES:,} more" if len(named) > _NAMES else "")
        for layer_id, named in db._names.items()
    ]


def layers(db: Database) -> pa.Table:
    """Return the table of layers with the other names that expressions accept."""
    rows = [
        {name: row[name] for name in LAYERS.names} | {"aliases": row["aliases"]}
        for row in db.meta["layers"]
    ]
    return pa.Table.from_pylist(rows, LAYERS.append(pa.field("aliases", pa.list_(pa.string()))))


def answer(row: Mapping[str, Any], m: Measure) -> Mapping[str, Any]:
    """Return a relevance for people: with the target's class, and on the scale of the logit."""
    shown = dict(row)
    if m.target is not None:
        shown["target"] = m.outputs.text(m.target, m.classes)
    if "given" not in row:
        shown["of the logit"] = row["relevance"] * m.logit
    return shown


def circuit(graph: nx.DiGraph) -> dict[str, Any]:
    """Return what a circuit is of, and what stands beside it, in the order to read it."""
    facts = graph.graph
    shown = {"inputs": f"{facts['inputs']:,}", "target": facts.get("target_text", "several")}
    shown |= {name: facts[name] for name in ("where", "given", "tables") if name in facts}
    if "undefined" in facts:
        shown |= {
            "mean" if facts["per_input"] else "ratio of means": "of every input's own conditional"
            if facts["per_input"]
            else f"over R(condition) = {facts['condition_relevance']:.6g}",
            "undefined": f"{facts['undefined']:,} inputs",
            "amplification": facts["amplification"],
        }
    shown |= {"weight": facts["weight"], "share kept": facts["share"]}
    if "share_strongest" in facts:
        shown["strongest"] = f"would keep {facts['share_strongest']:.6g}"
    shown |= {"absorbed": facts["absorbed"], "signs": facts["meaning"]}
    if facts.get("rivals"):
        shown["may belong"] = f"up to {facts['rivals']:,} other edges"
    return shown | ({"pruned": facts["pruned"]} if facts["pruned"] else {})


def circuit_edges(graph: nx.DiGraph) -> pa.Table:
    """Return the edges of a circuit as a table, the strongest first.

    Where a unit was named by the user, the ends' names follow as ``dst_name`` and ``src_name``.
    """
    _, edges = to_arrow(graph)
    if any("own_name" in data for _, data in graph.nodes(data=True)):
        for end in ("dst", "src"):
            ends = zip(*(edges[f"{end}_{w}"].to_pylist() for w in ("layer", "unit")), strict=True)
            names = [graph.nodes[node].get("name") for node in ends]
            edges = edges.append_column(f"{end}_name", pa.array(names, pa.string()))
    size = np.abs(edges["relevance"].to_numpy())
    return edges.take(np.argsort(-size, kind="stable")).replace_schema_metadata(None)


def conditions(db: Database) -> list[str]:
    """Return the conditions of a store in words, one each."""
    return [
        f"{row['name']}: {_condition(row)}"
        f"{'' if row['where'] is None else ' where ' + _short(row['where'])}, "
        f"{row['inputs']:,} inputs, {row['undefined']:,} undefined"
        for row in db.conditions().to_pylist()
    ]


def _condition(row: Mapping[str, Any]) -> str:
    """Say what the tables of a name are of."""
    event = None if row["event"] is None else _short(row["event"])
    if row["nodes"] is None:
        return str(event)
    return f"{row['nodes']:,} nodes{'' if event is None else f' given {event}'}"


def paths(found: Sequence[Any], m: Measure, by: str) -> pa.Table:
    """Return paths as a table.

    Columns: rank, relevance, path (its units as expressions, from the output to the input),
    layers, units and their names in words.
    """
    rows = [
        {
            "rank": rank,
            "relevance": float(path.relevance),
            "path": " > ".join(unit_text(m, layer, unit, by) for layer, unit in path.units),
            "layers": [layer for layer, _ in path.units],
            "units": [int(unit) for _, unit in path.units],
            "names": [_unit_name(m, layer, unit, by) for layer, unit in path.units],
        }
        for rank, path in enumerate(found, 1)
    ]
    return pa.Table.from_pylist(rows, _PATHS)


_PATHS = pa.schema(
    [
        ("rank", pa.int32()),
        ("relevance", pa.float64()),
        ("path", pa.string()),
        ("layers", pa.list_(pa.string())),
        ("units", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
    ]
)


def unit_text(m: Measure, name: str, unit: int, by: str = "unit") -> str:
    """Return a unit as an expression, such as ``features.28[12]``; a pseudo-unit as its name."""
    if unit < 0:
        return f"{name} {PSEUDO_UNITS[unit]}"
    layer = m.topology.layer(name)
    part = m.partitions[layer.layer_id]
    if by == "unit":
        by = "neuron" if part.single else part.resolution
    return repr(unit_set(replace(layer, name=name), by, unit))


def _unit_name(m: Measure, name: str, unit: int, by: str) -> str:
    layer = m.topology.layer(name)
    part = m.partitions[layer.layer_id]
    kind = part.kind if by in ("unit", part.resolution) else UnitKind(by)
    return unit_name(layer, kind, unit, m.tokens)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _ends(db: Database) -> dict[str, str]:
    """Say what a network takes and returns beyond one tensor of floats, and one vector."""
    found = {}
    if "inputs" in db.meta:
        found["takes"] = ", ".join(
            f"{row['name']} ({row['dtype']}, {'x'.join(map(str, row['shape'])) or 'a number'})"
            for row in db.meta["inputs"]
        )
    if len(db.outputs.parts) > 1 or len(db.outputs.parts[0][1]) > 1:
        found["returns"] = ", ".join(
            f"{name or 'outputs'} ({'x'.join(map(str, shape)) or 'a number'})"
            for name, shape in db.outputs.parts
        )
    return found


def composite(meta: Mapping[str, Any]) -> str:
    """Name the rules of a store and which kinds of layers they are for."""
    stored, kinds = meta["composite"], {row["kind"] for row in meta["layers"]}
    try:
        rules = [f"{kind} {rule['rule']}" for kind, rule in stored["kinds"] if kind in kinds]
        rules += [f"first {kind} {rule['rule']}" for kind, rule in stored["first"]]
        rules += [f"{layer} {rule['rule']}" for layer, rule in stored["layers"]]
    except (KeyError, TypeError, ValueError):  # of another writer: exact queries will refuse it
        rules = []
    name = str(stored.get("name") or "custom")
    if stored.get("bias", "absorbed") != "absorbed":
        rules.append("biases ignored")
    return f"{name} ({', '.join(rules)})" if rules else name


def _resolution(meta: Mapping[str, Any]) -> str:
    counts = Counter(row["resolution"] for row in meta["layers"])
    return ", ".join(f"{name} for {n} layers" for name, n in counts.items())


def _pruning(meta: Mapping[str, Any]) -> str:
    asked = [] if meta["coverage"] == 1 else [f"coverage {meta['coverage']:g}"]
    asked += [] if meta["top"] is None else [f"top {meta['top']:,}"]
    most = meta.get("max_edges")
    if most is not None:
        asked.append(f"the strongest edges of every pair of layers, {most:,} an input at most")
    pruned = meta.get("pruned")
    if not asked and not pruned:
        return "none: every edge is stored"
    where = ""
    if isinstance(pruned, list) and pruned:
        where = f"{len(pruned)} of {len(meta['groups'])} pairs of layers"
    return ", ".join([*asked, where] if where else asked)


def _kept(db: Database) -> dict[str, str]:
    """Say what share of every pair of layers a bounded store keeps."""
    shares = [e.kept for e in db._snapshot.entries.values() if e.kept is not None]
    if db.meta.get("max_edges") is None or not shares:
        return {}
    return {"kept": f"{min(shares):.3g} to {max(shares):.3g} of every pair's sum of |relevance|"}


def _precision(meta: Mapping[str, Any]) -> str:
    bits = meta["mantissa_bits"]
    return "lossless (float32)" if bits is None else f"edges rounded to {bits} bits"


def _classes(db: Database) -> str:
    names = db.meta["classes"]
    if not names and (tokens := [repr(text) for text in db.classes or () if text]):
        shown = ", ".join(tokens[:3]) + (", ..." if len(tokens) > 3 else "")
        return f"tokens, of which {len(tokens):,} are explained or predicted: {shown}"
    if not names:
        return "not known"
    return f"{len(names):,}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _sizes(db: Database, edges: int) -> dict[str, str]:
    manifests = db._snapshot.manifests.values()
    size = {
        table: sum(m.files[table].size for m in manifests if table in m.files) for table in TABLES
    }
    held = sum(m.files["tensors"].rows for m in manifests if "tensors" in m.files)
    found = {f"size of {table}": _bytes(size[table]) for table in TABLES if table != "tensors"}
    found["size of tensors"] = _bytes(size["tensors"]) if held else "0 (inputs left out)"
    program = sum(info["size"] for info in db.meta["files"].values())
    found["size of network"] = _bytes(program)
    apart = [c.snapshot.manifests.values() for c in db._conditions.values()]
    further = sum(f.size for ms in apart for m in ms for f in m.files.values())
    if apart:
        found["size of conditions"] = _bytes(further)
    found["size in all"] = _bytes(sum(size.values()) + program + further)
    if edges:
        found["bytes per edge"] = f"{size['edges'] / edges:.2f}"
    return found


def _bytes(size: int) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:,.1f} {unit}"
    return f"{size} bytes"
