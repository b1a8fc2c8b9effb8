"""From a model and inputs to a store: one forward run and one relevance pass per batch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nrm_graph import _optional
from nrm_graph.database import Database
from nrm_graph.errors import InputError, NrmError
from nrm_graph.extraction import store_settings as described
from nrm_graph.extraction.batches import Run, Task, entries_of, labelled, warn_vanished
from nrm_graph.extraction.item_numbers import first_item
from nrm_graph.extraction.loaders import Ended, refusal
from nrm_graph.extraction.samples import Sample, fields_of, indexed, items, length, sample
from nrm_graph.foreign_errors import translated
from nrm_graph.measures.create import device_of, traced
from nrm_graph.network import units
from nrm_graph.network.ir.input_spec import form, in_order, precision
from nrm_graph.network.targets import asked_for, outputs_of
from nrm_graph.network.tracing.torch_modules import plain
from nrm_graph.propagation import state
from nrm_graph.rules import check_registered, composites
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format import settings as store_settings
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.manifest import is_text
from nrm_graph.store.format.place import check_place
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer
from nrm_graph.tables import pruning
from nrm_graph.tables.dense_edges import refuse_too_large
from nrm_graph.tables.plan import plan
from nrm_graph.tables.rounding import check_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nrm_graph.network.targets import Outputs
    from nrm_graph.network.tracing.output_choice import Choice
    from nrm_graph.propagation.state import Network
    from nrm_graph.rules.composites import Composite


@translated("extracting")
def extract(
    model: torch.nn.Module,
    inputs: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    composite: str | Composite = "epsilon_gamma",
    target: str | int | tuple[Any, ...] | Mapping[Any, float] | Sequence[Any] = "predicted",
    resolution: str | Mapping[str, Any] = "auto",
    coverage: float = 1.0,
    top: int | None = None,
    mantissa_bits: int | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 16,
    device: str | torch.device = "auto",
    progress: bool = True,
    preprocessing: str | None = None,
    tensors: str = "keep",
    on_error: str = "stop",
    output: Choice = None,
    engine: str = "local",
    workers: int | None = None,
) -> Database:
    """Store the relevance tables of a data set.

    Parameters
    ----------
    model : nn.Module
        The network.
    inputs : iterable
        A data set, data loader or any iterable of tensors, (tensor, label) pairs or mappings
        ``{"input": tensor, "key": ..., "label": ..., **metadata}``; single samples, without
        batch axis, but for a ``DataLoader``, whose batches are taken apart (without batches,
        ``batch_size=None``, it gives samples).  A tensor or an array is a batch, whose rows are
        samples; NumPy arrays are taken as tensors of their numbers.  A network of several
        inputs takes a tuple of tensors, or a mapping by the names of forward's arguments, as
        ``"input"``.  A list of text as ``"tokens"`` names the positions of the input, in graphs
        and pictures.  Without a key an input is known by its content: equal inputs are one, and
        are refused where their labels differ.  A label is kept as text, lists and tensors as
        JSON (``[1, 0, 1]``).
    path : path
        Folder of the store; one that is there is continued: what is committed is not computed
        again.
    composite, resolution
        As in :func:`nrm_graph.measure`.
    target : "predicted", "label", class index, place, mapping, or a sequence of those
        What to explain; each (key, target) pair is one input of the store.  Where the output has
        several axes, a tuple with a number for each is a place in it, as in
        :func:`nrm_graph.measure`: ``(-1, 464)``, ``(-1, "predicted")`` or ``(-1, "label")``.  A
        mapping of indices or places to weights, such as ``{3: 1, 5: -1}``, is one target, the
        weighted sum: in ``inputs`` its ``target`` is null and ``weights`` holds it as text.
    coverage : float
        Per input and pair of layers, keep the fewest edges that hold this share of the sum of
        |relevance|.  What is pruned is stored as the pseudo-unit -3, so that row, column and
        grand totals stay exact.  With ``resolution="auto"``, groups of more than two million
        edges get 0.99.
    top : int, optional
        Per input and pair of layers, keep this many edges at most.
    mantissa_bits : int, optional
        Round the relevance and conditional of edges to so many bits (1 to 22; 10 has a largest
        relative error of 4.9e-4); lossless by default.
    classes : sequence of str, optional
        Names of the outputs, to find the target of a label.
    batch_size : int
        Inputs per relevance pass at most.  On a CPU large maps are taken in smaller batches,
        which is faster there; the numbers are the same.
    device : str or torch.device
        ``auto`` takes the accelerator if there is one.
    progress : bool
        On a terminal, show what is stored and a bar.
    preprocessing : str, optional
        How the inputs were prepared, in words; kept in the store.
    tensors : "keep" or "omit"
        Whether the store keeps the inputs themselves.  Without them exact measures need
        ``db.measure(key, input=tensor)``.
    on_error : "stop" or "skip"
        What to do with an input that cannot be read or explained; ``skip`` records it in the
        table ``failures``.  What ends a stream, or hides in a batch of a shuffled loader, cannot
        be skipped.
    output : str, int, or list of them, optional
        Of a network that returns several tensors, the one to explain; see
        :func:`nrm_graph.measure`.
    engine : "local" or "ray"
        Where to compute: in this process, or in processes of Ray (``nrm-graph[ray]``), which each
        read inputs of their own and write shards of their own.  Then ``inputs`` must have a length
        and an index, such as a data set or a list, and are sent to the processes as they are; the
        network is read from the store.  Ray is started here, unless it runs or ``RAY_ADDRESS``
        names a cluster, all machines of which must see the folder of the store.
    workers : int, optional
        Number of processes with ``engine="ray"``; one a core, or one an accelerator, by default.

    Returns
    -------
    Database

    Raises
    ------
    NrmError
        If the model, the composite, an input or the store cannot be used.  What was committed
        before stays.

    Warns
    -----
    UserWarning
        If nothing of a target of the first input is left to explain: its logit is 0, or tiny beside
        what its layer adds up, as where a network's head was never trained.

    Notes
    -----
    The column ``flags`` of ``inputs`` names what to know before trusting the signs and sizes of an
    input, as ``m.flags`` says it: see :mod:`nrm_graph.propagation.flags`. The column ``item`` of
    ``inputs`` is the place of an input in the data set, from 0; a call with new inputs counts on,
    one that goes on with a data set keeps its numbers: see
    :mod:`nrm_graph.extraction.item_numbers`.

    What is computed is committed at least every minute, and when the call ends in whichever way:
    by an error, Ctrl-C, SIGTERM or SIGHUP.  The two signals raise ``SystemExit``, and a second one
    ends the process at once; in a thread that is not the main one they do what they do anyway.
    """
    limit = pruning.check(coverage, top)
    check_bits(mantissa_bits)
    _check_options(batch_size, tensors, preprocessing, on_error, classes)
    _check_engine(engine, workers, inputs)
    asked = asked_for(target)
    rules = composites.get(composite)
    units.check(resolution)
    folder = local_path(path)
    check_place(folder)
    where = device_of(device)
    entries = items(inputs)
    early, first = _first(entries, on_error)
    network = plain(model)
    names, xs = in_order(network, first["input"], "the first input")
    program, example = traced(network, names, xs, output)
    taken, kind = form(program, example), precision(program)
    outputs = outputs_of(program)
    targets = outputs.targets(asked)
    known = sample(first, early[-1][0], taken, kind) if on_error == "stop" else None
    _check_range(targets, outputs, known, classes)
    net = state.network(program, rules, kind, where)
    check_registered(net.rules)
    if not (folder / "store.json").exists():  # else it was said when the store was made
        with contextlib.suppress(InputError):  # of an input that may be skipped
            one = known or sample(first, early[-1][0], taken, kind)
            warn_vanished(net, one, targets, classes, where)
    topology = net.layout.topology
    parts = units.resolve(topology, resolution)
    auto = not isinstance(resolution, str) or resolution == "auto"
    made = plan(net, parts, pruning.limits(topology, parts, limit, auto))
    refuse_too_large(made)
    settings, own = described.settings(net, made, program.hash(), classes)
    if not taken.plain:
        settings["inputs"] = taken.to_json()
    if program.outputs:
        settings["outputs"] = [{"name": n, "shape": list(s)} for n, s in program.outputs]
    settings |= {
        "coverage": limit.coverage,
        "top": top,
        "mantissa_bits": mantissa_bits,
        "preprocessing": preprocessing,
    }
    weights = {k: v.detach().cpu().contiguous().numpy() for k, v in program.weights.items()}
    store_settings.create(folder, settings, program.to_json(), weights, own)
    shown = progress and sys.stderr.isatty()
    if shown:
        print(described.sizes(made), file=sys.stderr)
    bar = tqdm(
        total=length(inputs),
        unit=" inputs",
        disable=None if shown else True,
    )
    task = Task(
        tuple(targets),
        None if classes is None else tuple(classes),
        tensors == "keep",
        mantissa_bits,
        on_error,
        _per_pass(batch_size, net, where),
        str(where),
    )
    told = False

    def done(count: int, seconds: float | None = None) -> None:
        nonlocal told
        bar.update(count)
        if shown and seconds is not None and not told:
            tqdm.write(_pace(seconds, count, bar.total), sys.stderr)
            told = True

    entries = chain(early, entries)
    keys = _keys(inputs, first, early[-1][0])

    def sample_of(item: Any, name: str) -> Sample:
        return sample(item, name, taken, kind)

    if engine == "ray":
        from nrm_graph.extraction import ray_workers

        _, start = first_item(Snapshot(folder).items, entries, keys, sample_of)
        with ending_in_order(), bar:
            ray_workers.run(folder, inputs, replace(task, start=start), workers, done)
        return Database(folder)
    with ending_in_order(), Writer(folder, threads=_writers()) as writer, bar:
        ahead, start = first_item(writer.items, entries, keys, sample_of)
        run = Run(made, replace(task, start=start), writer, taken)
        run.take(chain(ahead, entries), done)
    return Database(folder)


def _check_options(
    batch_size: int, tensors: str, preprocessing: object, on_error: str, classes: Any
) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size!r}")
    for name, value, known in (
        ("tensors", tensors, ("keep", "omit")),
        ("on_error", on_error, ("stop", "skip")),
    ):
        if value not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, found {value!r}")
    if preprocessing is not None and not is_text(preprocessing):
        raise InputError(f"preprocessing must be text in UTF-8, found {preprocessing!r:.80}")
    if classes is not None and (isinstance(classes, str) or not all(map(is_text, classes))):
        raise InputError(f"classes must be a list of names in UTF-8, found {classes!r:.80}")


def _check_engine(engine: str, workers: int | None, inputs: Iterable[Any]) -> None:
    if engine not in ("local", "ray"):
        raise InputError(f"engine must be 'local' or 'ray', found {engine!r}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise InputError(f"workers must be a number of processes, found {workers!r}")
    if workers is not None and (engine == "local" or workers < 1):
        raise InputError(
            f"workers={workers}: expected at least 1, with engine='ray'; one process computes "
            "with engine='local'"
        )
    if engine == "ray":
        _optional.installed()
        if not indexed(inputs):
            raise InputError(
                "engine='ray' takes inputs with a length and an index (a folder, an array, a data "
                f"set, a list), found {type(inputs).__name__}: give the data set itself, or a list"
            )


def _check_range(
    targets: list[Any], outputs: Outputs, first: Sample | None, classes: Sequence[str] | None
) -> None:
    """Refuse a target that no input can have, or the first has not, before a store is made."""
    anything = np.zeros(outputs.count)
    for choice in targets:
        for place in choice if isinstance(choice, Mapping) else [choice]:
            if "label" in entries_of(place):
                if first is None:
                    continue
                place = labelled(place, first, classes)
            outputs.index(place, anything)


def _first(
    entries: Iterator[tuple[str, Any]], on_error: str
) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Return the first input that can be read, which the network is traced with."""
    early: list[tuple[str, Any]] = []
    reason: NrmError | None = None
    for name, item in entries:
        early.append((name, item))
        try:
            return early, _readable(item, name)
        except Exception as error:  # a data set's own code can raise anything
            told = refusal(error, name)
            if on_error == "stop" or isinstance(error, Ended):
                raise told from told.__cause__
            reason = reason or told
    if reason is None:
        raise InputError("there are no inputs to extract")
    raise InputError(f"no input could be read; the first of {len(early):,}: {reason}") from reason


def _readable(item: Any, name: str) -> dict[str, Any]:
    """Fields of an item whose numbers are finite."""
    fields = fields_of(item, name)
    x = fields["input"]
    for part in x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else [x]:
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise InputError(f"input {fields.get('key') or name!r} holds NaN or infinity")
    return fields


def _keys(inputs: Any, first: Mapping[str, Any], name: str) -> Sequence[str] | None:
    """Keys of all inputs, where a data set names them without reading any."""
    keys = getattr(inputs, "keys", None)
    return keys if isinstance(keys, Sequence) and first.get("key") == name else None


CPU_NEURONS = 1 << 20
"""Neurons of a batch beyond which a CPU's caches make larger batches slower (measured)."""


def _per_pass(batch_size: int, net: Network, where: torch.device) -> int:
    if where.type != "cpu":
        return batch_size
    neurons = sum(layer.n_neurons for layer in net.layout.topology.layers)
    return max(1, min(batch_size, CPU_NEURONS // neurons))


def _writers() -> int:
    """Writer threads: one beside a few cores that compute, more beside many."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))


def _pace(seconds: float, inputs: int, total: int | None) -> str:
    """How long it will take, as the first batch went."""
    each = seconds / inputs
    if total is None:
        return f"about {each:.2g} s an input"
    return f"about {each:.2g} s an input, {each * total / 60:,.1f} minutes for {total:,}"
