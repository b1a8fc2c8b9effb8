"""Exact measures from a store: its own program, weights and input tensors, nothing else."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nrm_graph.errors import InputError, StoreError
from nrm_graph.measures.create import check_options, from_network
from nrm_graph.measures.event_passes import MEMORY
from nrm_graph.network.device import device_of
from nrm_graph.network.ir.input_spec import InputSpec, precision
from nrm_graph.network.ir.interpreter import settle_threads
from nrm_graph.network.ir.validation import vet
from nrm_graph.network.targets import outputs_of, stored_outputs
from nrm_graph.propagation import prepared_network
from nrm_graph.rules import composites
from nrm_graph.store import named_weights
from nrm_graph.store.format import settings
from nrm_graph.store.format.schema import content_of
from nrm_graph.store.position_texts import tokens_of
from nrm_graph.store.program_files import read_program, sound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nrm_graph.measures.measure import Measure
    from nrm_graph.network.ir.input_spec import Inputs
    from nrm_graph.network.ir.program import Program
    from nrm_graph.propagation.prepared_network import Network
    from nrm_graph.store.view import View

# Two float32 forward runs of one network differ by the order of their sums: by about 1e-6 of the
# largest output on another machine or batch size, and by 1e-4 where a winner of max-pooling flips.
# A wrong weight or input moves it by percents.
LOGIT_TOLERANCE = 1e-3


def load_program(db: View) -> Program:
    """Read the stored program; its hash and its operations are checked.

    Raises
    ------
    StoreError
        If it was changed, or names an operation outside the allow-list.
    InputError
        If the weights that the store names are not given, or are others.
    """
    program = read_program(db.path, named_weights.given(db.meta, db.path, db.weights))
    if program.hash() != db.meta["program_hash"]:
        raise StoreError(
            f"the program of {db.path} is not the one it was made with: copy the store again"
        )
    vet(program)
    return program


def program_of(db: View) -> Program:
    """Return the stored program, read once.

    Raises
    ------
    StoreError
        If the store is damaged.
    InputError
        If the weights that the store names are not given, or are others.
    """
    if db._program is None:
        with sound(db.path, caller_chose=True):
            db._program = load_program(db)
    return db._program


def _network(db: View, kind: torch.dtype | None, device: torch.device) -> Network:
    """Prepare the stored network, and compare what it is with what the store lists."""
    program, spec = program_of(db), input_spec_of(db.meta)
    inputs = tuple((name, shape, name in program.integers) for name, shape in program.inputs)
    stated = zip(spec.names, spec.shapes, (k != "float" for k in spec.kinds), strict=True)
    _listed(db, "inputs", inputs == tuple(stated))
    if program.outputs or "outputs" in db.meta:
        _listed(db, "outputs", outputs_of(program).parts == stored_outputs(db.meta).parts)
    kind = precision(program) if kind is None else kind
    net = prepared_network.network(
        program, composites.from_json(db.meta["composite"]), kind, device
    )
    topology = net.layout.topology.to_json()
    listed = [{name: row[name] for name in topology["layers"][0]} for row in db.meta["layers"]]
    _listed(db, "layers", topology["layers"] == listed and topology["groups"] == db.meta["groups"])
    return net


def _listed(db: View, subject: str, fits: bool) -> None:
    """Refuse a store whose settings list what its program has not."""
    if not fits:
        raise StoreError(
            f"the {subject} that {db.path / 'store.json'} lists are not those of its program: copy "
            "the store again, and do not trust one from a stranger"
        )


def stored_measure(
    db: View,
    identity: int,
    target: Mapping[Any, float] | None = None,
    *,
    dtype: str | None = None,
    scale: str = "unit",
    device: str | torch.device = "cpu",
    memory: int = MEMORY,
    inputs: Inputs | None = None,
) -> Measure:
    """Measure of a committed input; see :meth:`nrm_graph.database.Database.measure`.

    Raises
    ------
    InputError
        If an argument is unknown, or the tensor is missing or another one.
    StoreError
        If the store is damaged.
    """
    check_options(dtype, scale, memory)
    place = device_of(device)
    xs = _tensors(db, identity, input_spec_of(db.meta), inputs)
    kind = next((x.dtype for x in xs if x.is_floating_point()), None)
    kind = kind if dtype is None else getattr(torch, dtype)
    net = network_of(db, kind, place)
    x = tuple(t.to(place, kind if t.is_floating_point() else None) for t in xs)
    explained = db._snapshot.entries[identity].explained if target is None else target
    with sound(db.path, caller_chose=dtype is not None or target is not None):
        tokens = tokens_of(db, identity)
        m = from_network(net, x, explained, db.units(), scale, memory, tokens, db.classes)
        m = replace(m, partitions=db.partitions)  # with the user's names
    compare(db, identity, m.state.output[0])
    return m


def network_of(db: View, kind: torch.dtype | None, place: torch.device) -> Network:
    """Return the stored network in a dtype (None: its own) on a device, made once.

    Raises
    ------
    StoreError
        If the store is damaged.
    """
    settle_threads()
    cache = db._network or {}
    if (kind, place) not in cache:
        program_of(db)  # an error of the caller's weights stays one
        with sound(db.path):
            cache[kind, place] = _network(db, kind, place)
        db._network = cache
    return cache[kind, place]  # type: ignore[no-any-return]


def batch_of(db: View, ids: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return the stored tensors of several inputs as one batch for every input of the network.

    Raises
    ------
    InputError
        If the store keeps no tensors.
    StoreError
        If a tensor is damaged.
    """
    spec = input_spec_of(db.meta)
    return tuple(map(torch.cat, zip(*(_tensors(db, i, spec, None) for i in ids), strict=True)))


def input_spec_of(meta: Mapping[str, Any]) -> InputSpec:
    """Return what a store says that its network takes."""
    rows = settings.inputs_of(meta)
    return InputSpec(
        tuple(row["name"] for row in rows),
        tuple(tuple(row["shape"]) for row in rows),
        tuple(row["dtype"] for row in rows),
    )


def _tensors(
    db: View, identity: int, spec: InputSpec, inputs: Inputs | None
) -> tuple[torch.Tensor, ...]:
    """Tensors of an input as batches of one: the stored ones, or the caller's."""
    entry = db._snapshot.entries[identity]
    if inputs is None:
        stored = db._snapshot.tensors(identity)
        names = list(spec.names) if len(spec.names) > 1 else [""]
        if list(stored) != names:
            raise StoreError(
                f"the store holds the tensors {', '.join(map(repr, stored))} of {entry.key!r}, "
                f"expected {', '.join(map(repr, names))}: copy the store again"
            )
        xs = [torch.from_numpy(array.copy())[None] for array in stored.values()]
        for x, name, kind in zip(xs, spec.names, spec.kinds, strict=True):
            if x.is_floating_point() != (kind == "float"):
                raise StoreError(
                    f"the store holds {x.dtype} as the input {name!r} of {entry.key!r}, expected "
                    f"{kind}: copy the store again"
                )
        return tuple(xs)
    # Extraction casts inputs to the weights' type before it hashes them.
    content = ""
    for dtype in (torch.float64, torch.float16, torch.float32):
        xs = [x.detach().cpu().contiguous() for x in spec.samples(inputs, dtype, "input")]
        arrays = {name: x[0].numpy() for name, x in zip(spec.names, xs, strict=True)}
        content = content_of(arrays)
        if content == entry.content:
            return tuple(xs)
    shapes = " and ".join(str(tuple(x.shape[1:])) for x in xs)
    raise InputError(
        f"the tensor given as input= is not the one that was explained as {entry.key!r} (shape "
        f"{shapes}, SHA-256 of content {content[:12]}..., stored {entry.content[:12]}...): pass it "
        "preprocessed as it was then"
    )


def compare(db: View, identity: int, outputs: torch.Tensor) -> None:
    """Warn, once for each input, where the network's outputs do not give the stored one again."""
    if identity in db._compared:
        return
    db._compared.add(identity)
    stored = float(db._snapshot.facts(identity)["logit"])
    entry = db._snapshot.entries[identity]
    weights = entry.explained if isinstance(entry.explained, dict) else {entry.explained: 1.0}
    row = outputs.double()
    output = sum(weight * float(row[index]) for index, weight in weights.items())
    allowed = LOGIT_TOLERANCE * float(row.abs().max()) * sum(map(abs, weights.values()))
    if abs(stored - output) > allowed:
        warnings.warn(
            f"input {entry.key!r}: the stored program gives the target's output {output:.6g}, the "
            f"store says {stored:.6g}: the stored tables and this measure may not agree",
            UserWarning,
            stacklevel=4,
        )
