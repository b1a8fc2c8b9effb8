"""From a model and inputs to a store: one forward run and one relevance pass per batch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from nrm_graph.database import Database
from nrm_graph.errors import InputError
from nrm_graph.extraction import ray_workers, samples, store_settings
from nrm_graph.extraction.batches import Extraction, Task
from nrm_graph.extraction.first_input import first_readable
from nrm_graph.extraction.input_targets import check_range, warn_vanished
from nrm_graph.extraction.item_numbers import first_item
from nrm_graph.extraction.options import check_engine, check_options
from nrm_graph.extraction.progress import InputProgress
from nrm_graph.extraction.samples import items, sample
from nrm_graph.extraction.store_options import Store, StoreOptions
from nrm_graph.extraction.texts import text_call
from nrm_graph.foreign_errors import translated
from nrm_graph.language.language_model import LanguageModel
from nrm_graph.network.device import device_of
from nrm_graph.network.ir.held_weights import held
from nrm_graph.network.ir.input_spec import precision
from nrm_graph.network.targets import asked_for, outputs_of
from nrm_graph.network.tracing.given_program import program_of
from nrm_graph.propagation import prepared_network
from nrm_graph.rules.registry import check_registered
from nrm_graph.signals import ending_in_order
from nrm_graph.store.format import settings
from nrm_graph.store.format.files import local_path
from nrm_graph.store.format.place import check_place
from nrm_graph.store.program_files import arrays
from nrm_graph.store.read.snapshot import Snapshot
from nrm_graph.store.write.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from nrm_graph.network.ir.program import Program
    from nrm_graph.network.tracing.output_choice import Choice
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.rules.composites import Composite


@translated("extracting")
def extract(
    model: torch.nn.Module | Program | LanguageModel,
    inputs: Iterable[Any],
    path: str | os.PathLike[str],
    *,
    against: str | int | None = None,
    length: int | None = None,
    composite: str | Composite | None = None,
    bias: str | None = None,
    target: str | int | tuple[Any, ...] | Mapping[Any, float] | Sequence[Any] = "predicted",
    resolution: str | Mapping[str, Any] | None = None,
    max_edges: str | int = "auto",
    coverage: float | None = None,
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
    weights: str | None = None,
    engine: str = "local",
    workers: int | None = None,
) -> Database:
    """Store the relevance tables of a data set.

    Parameters
    ----------
    model : nn.Module, ExportedProgram, Program or LanguageModel
        The network.  A program, of :func:`nrm_graph.trace`, :func:`nrm_graph.load_program` or
        ``db.program`` of a store, is not traced again.  A language model, of
        :func:`nrm_graph.load_model`, takes texts.
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
        JSON (``[1, 0, 1]``).  A language model takes texts, or mappings ``{"text": ..., "key": ...,
        "label": ..., "target": ..., "against": ..., **metadata}``.
    path : path
        Folder of the store; one that is there is continued: what is committed is not computed
        again.  Then ``composite``, ``resolution``, ``max_edges``, ``coverage``, ``top``,
        ``mantissa_bits``, ``classes``, ``preprocessing`` and ``weights`` are the store's own
        where they are not given, and refused where they are given and differ.
    composite : str or Composite, optional
        Rules, as in :func:`nrm_graph.measure`: as the store was made, else ``epsilon_gamma``
        (``attn_lrp`` of a language model).
        ``auto`` is as the store was made, else ``attn_lrp`` of a network with attention, and
        ``epsilon_gamma`` of all others.
    bias : "absorbed" or "ignored", optional
        What becomes of biases and constants: as the store was made, else as the composite says
        (``absorbed``, of most); see :class:`nrm_graph.rules.composites.Composite`.
    resolution : str or mapping, optional
        Units, as in :func:`nrm_graph.measure`: as the store was made, else ``auto``.
    target : "predicted", "label", class index, place, mapping, or a sequence of those
        What to explain; each (key, target) pair is one input of the store.  Where the output has
        several axes, a tuple with a number for each is a place in it, as in
        :func:`nrm_graph.measure`: ``(-1, 464)``, ``(-1, "predicted")`` or ``(-1, "label")``.  A
        mapping of indices or places to weights, such as ``{3: 1, 5: -1}``, is one target, the
        weighted sum: in ``inputs`` its ``target`` is null and ``weights`` holds it as text.
        Of a language model: texts or ids of tokens (``" Paris"``), names or numbers of classes,
        or weights of these; a text's own ``target`` and ``against`` come before.
    against : str or int, optional
        Of a language model: the token or class that every target is compared with; the difference
        of the two outputs is explained.
    length : int, optional
        Of a language model: positions of the store, padding included: as the store was made, else
        those of the longest text; a stream must say.  A longer text is refused.
    max_edges : "auto", "all" or int
        Rows of ``edges`` per input at most, over all pairs of layers, each of which keeps the same
        share of its sum of |relevance| in its strongest edges; see
        :mod:`nrm_graph.tables.bounded`.  ``auto`` is as the store was made, else all edges of
        networks that are small to their last neuron, and 250,000 of others; ``all`` keeps all.  The
        share is the column ``kept`` of ``inputs``; what is left out of a pair is one row of the
        pseudo-unit -3, so that totals stay exact, and no edge that is left out exceeds the pair's
        ``threshold`` in the table ``thresholds``.  Exact answers do not depend on it.
    coverage : float, optional
        Instead: per input and pair of layers, keep the fewest edges that hold this share of the
        sum of |relevance|.  What is pruned is stored unit by unit as the pseudo-unit -3, so that
        row, column and grand totals stay exact.
    top : int, optional
        Instead: per input and pair of layers, keep this many edges at most.
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
        Tell what is stored and how far it has come, once more than five seconds lie ahead: a bar,
        or lines where standard error is redirected.
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
    weights : "copy" or "named", optional
        Whether the store holds the network's weights; as the store was made, else ``copy``
        (``named`` of a language model).
        ``named`` keeps name, type, shape and SHA-256 of those that are the model's own, and the
        bytes of the others alone (batch norm that was folded in, constants): exact answers then
        need ``ng.open(path, weights=FILE)``, a file of safetensors such as one that holds
        ``model.state_dict()``.  SQL and circuits do without.
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
    folder = local_path(path)
    texts = text_call(model, inputs, target, against, length, folder)
    network = model.network() if isinstance(model, LanguageModel) else model
    if texts is not None:
        inputs, target = texts.inputs, texts.targets
        composite, classes, weights = texts.options(composite, classes, weights)
    options = StoreOptions(
        composite,
        bias,
        resolution,
        max_edges,
        coverage,
        top,
        mantissa_bits,
        classes,
        preprocessing,
        weights,
    )
    options.check()
    check_options(batch_size, tensors, preprocessing, on_error, classes)
    check_engine(engine, workers, inputs)
    requested = asked_for(target)
    store = _store(folder, options)
    where = device_of(device)
    entries = items(inputs)
    first = first_readable(entries, on_error)
    traced = network if texts is None else texts.program()
    program, example = program_of(traced, first.fields["input"], output, "the first input")
    program_hash = program.hash()
    if store.meta is not None:
        settings.check_program(store.meta, program_hash)
    spec, names = store.spec(program, example), store.option("classes")
    kind = precision(program)
    sample_of = partial(sample, spec=spec, dtype=kind)
    outputs = outputs_of(program)
    targets = outputs.targets(requested)
    first_sample = sample_of(first.fields, first.name) if on_error == "stop" else None
    check_range(targets, outputs, first_sample, names)
    net = prepared_network.network(program, store.composite(program), kind, where)
    check_registered(net.rules)
    state = None
    if store.meta is None:  # else it was said when the store was made
        with contextlib.suppress(InputError):  # of an input that may be skipped
            checked_sample = first_sample or sample_of(first.fields, first.name)
            state = warn_vanished(net, checked_sample, targets, names, where)
    tables = store.plan(net)
    description, partitions = store_settings.settings(program, tables, spec, program_hash)
    description |= store.kept_options(tables) | store.named_weights(program, network)
    description |= {} if texts is None else {"language": texts.described}
    _create_store(store.folder, program, description, partitions)
    own = held(program.weights) if "named" in description else None
    meter = InputProgress(samples.length(inputs), partial(store_settings.sizes, tables), progress)
    task = Task(
        tuple(targets),
        None if names is None else tuple(names),
        tensors == "keep",
        store.option("mantissa_bits"),
        on_error,
        _per_pass(batch_size, net, where),
        str(where),
        names=None if texts is None else texts.names,
    )
    everything = chain(first.read, entries)
    number = partial(first_item, keys=first.keys_of(inputs), sample_of=sample_of)
    with ending_in_order():
        if engine == "ray":
            del state
            _, start = number(Snapshot(store.folder).items, everything)
            task = replace(task, start=start)
            with meter:
                ray_workers.explain_all(store.folder, inputs, task, workers, meter.explained, own)
        else:
            with Writer(store.folder, threads=_writers()) as writer, meter:
                ahead, start = number(writer.items, everything)
                extraction = Extraction(tables, replace(task, start=start), writer, spec, state)
                del state
                extraction.take(chain(ahead, everything), meter.explained)
    return Database(store.folder, own)


def _store(folder: Path, options: StoreOptions) -> Store:
    """Look at the store that is to be made, or goes on.

    Raises
    ------
    InputError, StoreError
        If no store can be there, or the one that is there cannot be read.
    """
    check_place(folder)
    there = (folder / "store.json").exists()
    return Store(folder, settings.read_settings(folder) if there else None, options)


def _create_store(
    folder: Path,
    program: Program,
    description: Mapping[str, Any],
    partitions: Mapping[str, Any],
) -> None:
    """Make a store, or check that the one that is there was made alike.

    Raises
    ------
    StoreError
        If it was made otherwise, or cannot be written.
    """
    named = description.get("named", ())
    kept = {name: program.weights[name] for name in program.weights if name not in named}
    settings.create(folder, description, program.to_json(), arrays(kept), partitions)


CPU_NEURONS = 1 << 20
"""Neurons of a batch beyond which a CPU's caches make larger batches slower (measured)."""


def _per_pass(batch_size: int, net: Network, where: torch.device) -> int:
    """Return the inputs of a batch: on a CPU no more than its caches hold."""
    if where.type != "cpu":
        return batch_size
    neurons = sum(layer.n_neurons for layer in net.layout.topology.layers)
    return max(1, min(batch_size, CPU_NEURONS // neurons))


def _writers() -> int:
    """Writer threads: one beside a few cores that compute, more beside many."""
    return max(1, min(4, (os.cpu_count() or 1) // 4))
