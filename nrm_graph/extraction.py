"""From a model and inputs to a store: one forward run and one relevance pass per batch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from nrm_graph import composites, described, pruning, states, units
from nrm_graph.contributions import refuse_too_large
from nrm_graph.database import Database
from nrm_graph.edges import edge_tables
from nrm_graph.errors import InputError, NrmError, StoreError
from nrm_graph.forms import form, in_order, precision
from nrm_graph.plan import plan
from nrm_graph.precision import check_bits, rounded
from nrm_graph.prepare import checked_tokens, device_of, output_weights, places, traced
from nrm_graph.rules import check_registered
from nrm_graph.samples import Sample, class_index, fields_of, items, label_text, sample
from nrm_graph.store import settings as store_settings
from nrm_graph.store.files import local_path
from nrm_graph.store.schema import Record
from nrm_graph.store.writer import Writer
from nrm_graph.targets import asked_for, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nrm_graph.composites import Composite
    from nrm_graph.outputs import Choice
    from nrm_graph.plan import Plan
    from nrm_graph.states import Network
    from nrm_graph.targets import Outputs


def extract(
    model: torch.nn.Module,
    inputs: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    composite: str | Composite = "epsilon_gamma",
    target: str | int | tuple[Any, ...] | Sequence[Any] = "predicted",
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
) -> Database:
    """Store the relevance tables of a data set.

    Parameters
    ----------
    model : nn.Module
        The network.
    inputs : iterable
        A data set, data loader or any iterable of tensors, (tensor, label) pairs or mappings
        ``{"input": tensor, "key": ..., "label": ..., **metadata}``; single samples, without
        batch axis, but for a ``DataLoader``, whose batches are taken apart.  A network of several
        inputs takes a tuple of tensors, or a mapping by the names of forward's arguments, as
        ``"input"``.  A list of text as ``"tokens"`` names the positions of the input, in graphs
        and pictures.
    path : path
        Folder of the store; one that is there is continued: what is committed is not computed
        again.
    composite, resolution
        As in :func:`nrm_graph.measure`.
    target : "predicted", "label", class index, place, or a sequence of those
        What to explain; each (key, target) pair is one input of the store.  Where the output has
        several axes, a tuple with a number for each is a place in it, as in
        :func:`nrm_graph.measure`: ``(-1, 464)``, ``(-1, "predicted")`` or ``(-1, "label")``.
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
        table ``failures``.
    output : str, int, or list of them, optional
        Of a network that returns several tensors, the one to explain; see
        :func:`nrm_graph.measure`.

    Returns
    -------
    Database

    Raises
    ------
    NrmError
        If the model, the composite, an input or the store cannot be used.  What was committed
        before stays.
    """
    limit = pruning.check(coverage, top)
    check_bits(mantissa_bits)
    _check_options(batch_size, tensors, preprocessing, on_error)
    asked = asked_for(target)
    folder = local_path(path)
    where = device_of(device)
    entries = items(inputs)
    early, first = _first(entries, on_error)
    names, xs = in_order(model, first["input"], "the first input")
    program, example = traced(model, names, xs, output)
    taken, kind = form(program, example), precision(program)
    outputs = outputs_of(program)
    targets = outputs.targets(asked)
    known = sample(first, early[-1][0], taken, kind) if on_error == "stop" else None
    _check_range(targets, outputs, known, classes)
    net = states.network(program, composites.get(composite), kind, where)
    check_registered(net.rules)
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
        total=len(inputs) if isinstance(inputs, Sized) else None,
        unit=" inputs",
        disable=None if shown else True,
    )
    size = _per_pass(batch_size, net, where)
    with Writer(folder, threads=_writers()) as writer, bar:
        run = _Run(made, targets, classes, writer, where, tensors == "keep", mantissa_bits, outputs)
        batch: list[Sample] = []
        told = False
        for name, item in _chain(early, entries):
            try:
                found = sample(item, name, taken, kind)
                if isinstance(found.metadata.get("tokens"), list | tuple):
                    checked_tokens(net, found.metadata["tokens"])
                stored = run.is_stored(found)
            except StoreError:
                raise
            except Exception as error:
                _failed(writer, name, item, error, on_error)
                bar.update(1)
                continue
            if stored:
                bar.update(1)
                continue
            batch.append(found)
            if len(batch) == size:
                began = time.perf_counter()
                run.process(batch, on_error)
                bar.update(len(batch))
                if shown and not told:
                    tqdm.write(
                        _pace(time.perf_counter() - began, len(batch), bar.total), sys.stderr
                    )
                    told = True
                batch = []
        if batch:
            run.process(batch, on_error)
            bar.update(len(batch))
    return Database(folder)


def _check_options(batch_size: int, tensors: str, preprocessing: object, on_error: str) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size!r}")
    for name, value, known in (
        ("tensors", tensors, ("keep", "omit")),
        ("on_error", on_error, ("stop", "skip")),
    ):
        if value not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, found {value!r}")
    if preprocessing is not None and not isinstance(preprocessing, str):
        raise InputError(f"preprocessing must be text, found {type(preprocessing).__name__}")


def _check_range(
    targets: list[Any], outputs: Outputs, first: Sample | None, classes: Sequence[str] | None
) -> None:
    """Refuse a target that no input can have, or the first has not, before a store is made."""
    anything = np.zeros(outputs.count)
    for choice in targets:
        if "label" in (choice if isinstance(choice, tuple) else (choice,)):
            if first is None:
                continue
            choice = _labelled(choice, first, classes)
        outputs.index(choice, anything)


def _labelled(choice: Any, found: Sample, classes: Sequence[str] | None) -> Any:
    """Return a target with the label of a sample in the place of ``label``."""
    if isinstance(choice, tuple):
        return tuple(class_index(found, classes) if e == "label" else e for e in choice)
    return class_index(found, classes) if choice == "label" else choice


def _first(
    entries: Iterator[tuple[str, Any]], on_error: str
) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Return the first input that can be read, which the network is traced with."""
    early = []
    for name, item in entries:
        early.append((name, item))
        try:
            return early, _readable(item, name)
        except Exception as error:
            if isinstance(error, NrmError) and on_error == "stop":
                raise
            if on_error == "stop":
                raise InputError(
                    f"{name} cannot be read: {type(error).__name__}: {error}"
                ) from error
    raise InputError(
        "there are no inputs to extract" if not early else "no input could be read: see on_error"
    )


def _readable(item: Any, name: str) -> dict[str, Any]:
    """Fields of an item whose numbers are finite."""
    fields = fields_of(item, name)
    x = fields["input"]
    for part in x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else [x]:
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise InputError(f"input {fields.get('key') or name!r} holds NaN or infinity")
    return fields


def _failed(writer: Writer, name: str, item: Any, error: Exception, on_error: str) -> None:
    """Record an input that failed, or stop."""
    if on_error == "stop":
        if isinstance(error, NrmError):
            raise error
        raise InputError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    key = item.get("key") if isinstance(item, dict) else None
    writer.fail(str(key or name), str(error) or type(error).__name__)


def _chain(early: list[tuple[str, Any]], rest: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    yield from early
    yield from rest


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


@dataclass
class _Run:
    """What stays the same from batch to batch."""

    made: Plan
    targets: list[Any]
    classes: Sequence[str] | None
    writer: Writer
    where: torch.device
    keep: bool
    bits: int | None
    outputs: Outputs

    def is_stored(self, found: Sample) -> bool:
        """Whether every target of an input is stored, so that nothing need be computed.

        The prediction of a key that is there is known from the store: its content is the same.
        """
        for choice in self.targets:
            target: int | None
            if choice == "predicted":
                target = self.writer.predicted(found.key)
            elif isinstance(choice, tuple) and "predicted" in choice:
                target = None  # of one position: not known before the network has run
            else:
                target = self.outputs.index(_labelled(choice, found, self.classes))
            # Without a target this checks the content all the same.
            known = -1 if target is None else target
            if not self.writer.committed(found.key, known, found.content):
                return False
        return True

    def _kept(self, found: Sample) -> Any:
        """Arrays of an input as the store keeps them; None where it does not."""
        names = [name for name, _ in self.made.network.program.inputs]
        if not self.keep:
            return None
        return found.arrays[0] if len(names) == 1 else dict(zip(names, found.arrays, strict=True))

    def process(self, batch: list[Sample], on_error: str) -> None:
        """Explain a batch; where one of its inputs fails, the others go on without it."""
        try:
            self._explain(batch)
        except InputError as error:
            if on_error == "stop":
                raise
            if len(batch) == 1:
                self.writer.fail(batch[0].key, str(error))
                return
            for found in batch:
                self.process([found], on_error)

    def _explain(self, batch: list[Sample]) -> None:
        net = self.made.network
        stacked = (np.stack(arrays) for arrays in zip(*(s.arrays for s in batch), strict=True))
        xs = tuple(torch.from_numpy(x).to(self.where, non_blocking=True) for x in stacked)
        try:
            state = states.forward(net, xs)
        except NrmError as error:
            error.add_note(f"in a batch with the inputs {', '.join(s.key for s in batch)}")
            raise
        predicted = state.output.argmax(1).tolist()
        for choice in self.targets:
            named = [_labelled(choice, found, self.classes) for found in batch]
            chosen = [
                places(one, state.output[i : i + 1], self.outputs)[0] for i, one in enumerate(named)
            ]
            pairs = zip(batch, chosen, strict=True)
            if all(self.writer.committed(found.key, t) for found, t in pairs):
                continue
            weights = torch.cat(
                [
                    output_weights(t, state.output[i : i + 1], self.outputs)
                    for i, t in enumerate(chosen)
                ]
            )
            logits = (weights * state.output).sum(1).tolist()
            tables = edge_tables(state, states.seed(state, weights), self.made)
            for i, (found, (nodes, edges)) in enumerate(zip(batch, tables, strict=True)):
                self.writer.add(
                    Record(
                        found.key,
                        chosen[i],
                        label_text(found),
                        predicted[i],
                        logits[i],
                        found.metadata,
                        found.content,
                        self._kept(found),
                        nodes,
                        edges if self.bits is None else rounded(edges, self.bits),
                    )
                )
