"""An accelerator made of the host's own memory, to run on what would run on a real one.

Tensors on it refuse what a real one refuses: to be NumPy arrays, or to meet tensors of the host
unless these are single numbers.  Every time that the host would wait for it is noted.  A plugin
of pytest: ``pytest -p helpers.simulated_device``; it must be alone in its process, as torch then
has an accelerator.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "simulated"
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
HOST_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
}

waits = []
"""Name of every operation for which the host had to wait."""

refused = set()
"""Types of numbers that the device does not have; none by default."""


class Module(backend_registration._DummyBackendModule):
    """What ``torch.simulated`` is."""

    def get_amp_supported_dtype(self):
        return [torch.float16]


class Elsewhere(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, host):
        self.host = host

    def __repr__(self):
        return f"Elsewhere({self.host})"

    def data_ptr(self):
        return self.host.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        strangers = [t for t in tensors if not isinstance(t, Elsewhere)]
        if func in HOST_INDICES:
            strangers = [t for t in strangers if not any(t is index for index in args[1])]
        if any(t.ndim for t in strangers) and func not in COPIES:
            raise RuntimeError(f"Expected all tensors to be on the same device ({func})")
        leaves = target is not None and target.type == "cpu"
        to_host = func is aten.copy_.default and not isinstance(args[0], Elsewhere)
        if leaves or to_host or func in WAITS or _masked(func, args):
            waits.append(str(func))
        if func in COPIES and strangers and isinstance(args[0], Elsewhere):
            waits.append("upload")
        results = func(*pytree.tree_map(_host, args), **pytree.tree_map(_host, kwargs))
        if leaves or to_host:
            return args[0] if to_host else results
        known = {id(t.host): t for t in tensors if isinstance(t, Elsewhere)}  # changed in place

        def wrapped(value):
            if not isinstance(value, torch.Tensor):
                return value
            if value.dtype in refused:
                raise TypeError(f"the device has no {value.dtype}")
            return known[id(value)] if id(value) in known else Elsewhere(value)

        return pytree.tree_map(wrapped, results)


def _host(value):
    return value.host if isinstance(value, Elsewhere) else value


def _masked(func, args):
    indices = args[1] if func in HOST_INDICES else ()
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices)


def register():
    """Give torch the device, once."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    torch.accelerator.synchronize = lambda device=None: None  # there is nothing to wait for
    library = torch.library.Library("aten", "IMPL")

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(value, target, non_blocking=False):
        waits.append("upload")  # of memory that is not pinned
        _host(target).copy_(_host(value))
        return target

    library.impl("_copy_from", copy_from, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    return library


LIBRARY = register()
