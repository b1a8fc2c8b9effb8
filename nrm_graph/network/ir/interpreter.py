"""Running a program, and telling its samples apart."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from nrm_graph.errors import TraceError, first_line
from nrm_graph.foreign_errors import out_of_memory
from nrm_graph.network.ir.batch_axis import BatchAxis
from nrm_graph.network.ir.held_weights import HeldWeights, held, product, read_as
from nrm_graph.network.ir.operations import ENDS, function
from nrm_graph.network.ir.program import Batch, Program, Ref, Weight
from nrm_graph.progress import look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nrm_graph.network.ir.program import Node

F = TypeVar("F", bound="Callable[..., Any]")

_process = os.getpid()
_lock = threading.Lock()


def settle_threads() -> None:
    """Compute with one thread after a fork: torch would wait for its parent's threads forever."""
    global _process, _lock
    if _process != os.getpid():
        torch.set_num_threads(1)
        _process, _lock = os.getpid(), threading.Lock()


_computing = 0
_undo: list[Callable[[], object]] = []


@contextlib.contextmanager
def _whole_products() -> Iterator[None]:
    """Multiply float32 with all of its bits, which convolutions on a GPU do not do by default.

    Their factors would have 10 bits (TF32), and cuts sum to 1 within a thousandth.  The setting is
    the process's: the first computation makes it, and the last one that runs takes it back.
    """
    global _computing
    with _lock:
        _computing += 1
        if _computing == 1:
            _undo.extend(_set_whole())
    try:
        yield
    finally:
        with _lock:
            _computing -= 1
            while not _computing and _undo:
                _undo.pop()()


def _set_whole() -> Iterator[Callable[[], object]]:
    """Make the settings; yields what takes each of them back."""
    own: Any = torch.backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 warns of the older names
        # These first: torch.export reads them, and fails where the newer ones contradict them.
        with contextlib.suppress(RuntimeError):  # they do already
            before = torch.get_float32_matmul_precision()
            if before != "highest":
                torch.set_float32_matmul_precision("highest")
                yield functools.partial(torch.set_float32_matmul_precision, before)
        with contextlib.suppress(RuntimeError):
            if own.cudnn.allow_tf32:
                own.cudnn.allow_tf32 = False
                yield functools.partial(setattr, own.cudnn, "allow_tf32", True)
    for place in (own.cudnn.conv, own.cuda.matmul):
        narrow = place.fp32_precision
        if narrow not in ("ieee", "none"):
            place.fp32_precision = "ieee"
            yield functools.partial(setattr, place, "fp32_precision", narrow)


def own_precision(function: F) -> F:
    """Decorate a computation so that it runs in its tensors' own dtype.

    A user's ``torch.autocast`` block would compute in half precision otherwise, and a GPU multiply
    in less than float32.  Where memory ends, an error says so.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        settle_threads()
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        with contextlib.ExitStack() as settings:
            settings.enter_context(torch.autocast("cpu", enabled=False))
            if accelerator is not None:
                settings.enter_context(torch.autocast(accelerator.type, enabled=False))
                settings.enter_context(_whole_products())
            try:
                return function(*args, **kwargs)
            except (MemoryError, RuntimeError) as error:
                full = out_of_memory(error, "computing")
                if full is None:
                    raise
                raise full from error

    return cast("F", call)


def exact(function: F) -> F:
    """Decorate a computation so that it runs without gradients and in its tensors' own dtype."""
    return own_precision(torch.no_grad()(function))


def resolve(value: object, values: Mapping[str, Any], weights: Mapping[str, Tensor], n: int) -> Any:
    """Turn a stored argument into what the operation takes, for a batch of n."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Weight):
        return weights[value.name]
    if isinstance(value, Batch):
        return value.scale * n + value.offset
    if isinstance(value, tuple):
        return [resolve(item, values, weights, n) for item in value]
    return value


def evaluated(node: Node, values: Mapping[str, Any], weights: Mapping[str, Tensor], n: int) -> Any:
    """Value of a node for a batch of n; a vocabulary in half precision is never wide as a whole."""
    if isinstance(weights, HeldWeights):
        first, *rest = node.args or (None,)
        if node.op in ENDS and isinstance(first, Weight):
            rows = function(node.op)(weights.held[first.name], *resolve(tuple(rest), values, {}, n))
            return rows.to(weights.dtype)
        if node.op == "aten.linear.default" and isinstance(first, Ref):
            return product(*resolve(node.args, values, weights.held, n))
    args = resolve(node.args, values, weights, n)
    kwargs = {key: resolve(value, values, weights, n) for key, value in node.kwargs}
    return function(node.op)(*args, **kwargs)


def steps(program: Program, *inputs: Tensor) -> Iterator[tuple[Node, Any]]:
    """Run a program node by node; a value is dropped after its last reader."""
    last = {name: node.name for node in program.nodes for name in node.references()}
    values: dict[str, Any] = {name: x for (name, _), x in zip(program.inputs, inputs, strict=True)}
    n = inputs[0].shape[0]
    for node in program.nodes:
        look()
        values[node.name] = evaluated(node, values, program.weights, n)
        yield node, values[node.name]
        for name in dict.fromkeys(node.references()):
            if last[name] == node.name:
                del values[name]


def _uniform(program: Program, inputs: Sequence[Tensor]) -> tuple[Program, tuple[Tensor, ...]]:
    """Bring a program and its inputs to one type of floats, as a pass is computed in one."""
    tensors = [*held(program.weights).values(), *inputs]
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    kind = torch.float64 if double else torch.float32

    def cast_floats(tensor: Tensor) -> Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    weights = read_as(program.weights, kind)
    return replace(program, weights=weights), tuple(cast_floats(x) for x in inputs)


@exact
def run(program: Program, *inputs: Tensor) -> Tensor:
    """Output of a program for a batch, as the network gives it (batch axis as it is).

    Parameters
    ----------
    program : Program
        A traced network, with or without operations that lack a rule.
    inputs : Tensor
        One batch per input of the program.
    """
    program, inputs = _uniform(program, inputs)
    output = dict(zip((name for name, _ in program.inputs), inputs, strict=True)).get(
        program.output
    )
    for node, value in steps(program, *inputs):
        if node.name == program.output:
            output = value
    assert output is not None
    return output


@dataclass(frozen=True)
class Settled:
    """A program whose values know their batch axis, and what it answered on the way.

    Attributes
    ----------
    program : Program
        The program.
    together : Tensor
        Output for a batch of two: the example, and another sample.
    alone : pair of Tensor
        Outputs for each of them alone.
    """

    program: Program
    together: Tensor
    alone: tuple[Tensor, Tensor]


@exact
def settle_batches(program: Program, examples: Sequence[Tensor]) -> Settled:
    """Find how each value's batch axis divides into samples, by evaluation.

    A batch of two samples, the example and another, is run beside each of them alone.  A value
    whose axis has size ``s * n`` may run over the samples first or last; what is right is what
    gives each sample the value that it has alone.  If nothing does, the network mixes its samples.

    Raises
    ------
    TraceError
        If a sample's value depends on what else is in the batch.
    """
    uniform, examples = _uniform(program, examples)
    others = [_other(x) for x in examples]
    pair = [torch.cat(both) for both in zip(examples, others, strict=True)]
    names = [name for name, _ in program.inputs]
    given = [dict(zip(names, xs, strict=True)) for xs in (pair, examples, others)]
    answers = [xs.get(program.output) for xs in given]
    nodes: list[Node] = []
    ran: list[str] = []
    alone: set[str] = set()  # made from the size of the batch alone, as arange(n) is

    def together() -> Iterator[tuple[Node, Any]]:
        for node, value in steps(uniform, *pair):
            ran.append(node.name)
            yield node, value

    try:
        for (node, both), (_, first), (_, second) in zip(
            together(), steps(uniform, *examples), steps(uniform, *others), strict=True
        ):
            if node.name == program.output:
                answers = [both, first, second]
            if all(name in alone for name in node.references()):
                alone.add(node.name)
                if isinstance(first, Tensor):
                    node = replace(node, shape=node.batch.shape(tuple(first.shape)))
                nodes.append(node)
            elif isinstance(both, Tensor):
                nodes.append(_settle(node, both, first, second))
            else:  # parts of a split, which keep the batch in one place
                batch = _settle(node, both[0], first[0], second[0]).batch
                nodes.append(replace(node, batch=batch))
    except (RuntimeError, IndexError, ValueError) as error:
        node = program.nodes[len(nodes)]
        failure = f"{node.op} in {node.module or 'the model itself'}: {first_line(error)}"
        if len(ran) == len(nodes):  # the two together, as the network was traced
            raise TraceError(f"the traced network does not run, at {failure}") from error
        raise TraceError(
            f"the traced network does not run for another batch size, at {failure}; squeeze() and "
            "reshapes that depend on the batch being larger than 1 do this: name the axes"
        ) from error
    of_both, of_first, of_second = answers
    assert of_both is not None
    assert of_first is not None
    assert of_second is not None
    return Settled(replace(program, nodes=tuple(nodes)), of_both, (of_first, of_second))


def _other(x: Tensor) -> Tensor:
    """Return a sample near an example that differs from it."""
    if not x.is_floating_point():
        # The network itself bounds the range of integers: the same ones in another order.
        other = x.flip(tuple(range(1, x.ndim)))
        return x.roll(1, -1) if torch.equal(x, other) and x.ndim > 1 else other
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    spread = x.std(correction=0) if x.numel() > 1 else x.abs().max()
    return x + (0.5 * spread if spread > 0 else 1.0) * noise


def _settle(node: Node, both: Tensor, first: Tensor, second: Tensor) -> Node:
    native, axis, scale = tuple(first.shape), node.batch.axis, node.batch.scale
    if both.dtype == torch.bool or not both.is_floating_point():
        both, first, second = both.double(), first.double(), second.double()
    errors: dict[BatchAxis, float] = {}
    fits = first.ndim == both.ndim and native[axis] == scale and both.shape[axis] == 2 * scale
    for outer in (d for d in range(1, scale + 1) if fits and scale % d == 0):
        batch = BatchAxis(axis, outer, scale // outer)
        together = zip(batch.samples(both), (first, second), strict=True)
        errors[batch] = sum(_size(part - batch.samples(one)[0]) for part, one in together)
    best = min(errors, key=lambda b: errors[b], default=None)
    if best is None or not _near(errors[best], first, second):
        raise TraceError(
            f"{node.op} in {node.module or 'the model itself'} mixes the samples of a batch: what "
            "it gives one sample depends on the others; explain a network that treats samples "
            "one by one"
        )
    return replace(node, shape=best.shape(native), batch=best)


def _near(error: float, first: Tensor, second: Tensor) -> bool:
    """Whether an error is small beside two samples' values, and beside how they differ."""
    if error == 0:
        return True
    rounding = 1e-4 * (_size(first) + _size(second))
    return error <= rounding or error <= rounding + 0.01 * _size(first - second)


def _size(value: Tensor) -> float:
    """Sum of magnitudes; infinities of masked scores count for nothing."""
    size = float(value.abs().sum())
    if math.isfinite(size):
        return size
    return float(value.abs().nan_to_num(0.0, 0.0, 0.0).sum(dtype=torch.float64))
