"""Where the tensors of unit and conformance tests lie: `pytest --device cuda`, and a device that is only pretended.

A test that is run on a device makes its own tensors and models there. The package makes its tensors where it says so, as it does
for users: torch's default device stays the CPU, or a forgotten `device=` would go unseen.

`--device pretended` needs no accelerator. Its tensors are CPU memory that refuses to be mixed with the CPU's and counts
whatever the host would have to wait for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRETENDED = "pretended"
TIERS = ("unit", "conformance")

# Test files whose subject is on the CPU whatever the device, and why.
ON_CPU = {
    "test_benchmark.py": "a benchmark makes its models and sentences itself, on the device that its settings name",
    "test_export.py": "exports are made of checkpoints, which are read into CPU memory",
}

_TESTS = Path(__file__).parent
_PACKAGE = _TESTS.parent / "fairseq_dsp"
_FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint,
    torch.randn, torch.tensor, torch.zeros,
}  # fmt: skip
_chosen = torch.device("cpu")


def choose(name: str) -> None:
    """The device of this session's tests."""
    if name != "cpu":
        torch.empty(0, device="cpu" if name == PRETENDED else name)  # raises where there is none
        torch.use_deterministic_algorithms(True, warn_only=True)  # "the same" means bit for bit, as on a CPU
        on(name).__enter__()  # for good


@contextmanager
def on(name: str) -> Iterator[None]:
    """Within, what tests make is on this device."""
    global _chosen
    before, _chosen = _chosen, torch.device("meta" if name == PRETENDED else name)
    try:
        with PretendedDevice() if name == PRETENDED else nullcontext(), MadeWhereTestsRun():
            yield
    finally:
        _chosen = before


def device() -> torch.device:
    """Where the test that asks has its tensors."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).name in ON_CPU:
            return torch.device("cpu")
        frame = frame.f_back
    return _chosen


class MadeWhereTestsRun(TorchFunctionMode):
    """Moves what a test makes to its device, unless the test says where; what the package makes is left alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FACTORIES:
            return func(*args, **kwargs)
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked) != _chosen:
            return func(*args, **kwargs)
        if asked is None and not _called_by_a_test():
            return func(*args, **kwargs)
        # made on the CPU, so that every device sees the same numbers
        wants = kwargs.get("requires_grad", False)
        made = func(*args, **{name: value for name, value in kwargs.items() if name not in ("requires_grad", "device")})
        made = made.to(device() if asked is None else asked)
        return made.requires_grad_() if wants else made


def _called_by_a_test() -> bool:
    """Whether the nearest caller that is neither torch nor fairseq is a test, and not the package."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _PACKAGE in path.parents:
            return False
        if _TESTS in path.parents and path.name != "devices.py":
            return True
        frame = frame.f_back
    return False


class Pretended(Tensor):
    """A tensor on the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    # with these, modules swap parameters when they are moved, instead of writing into memory of another kind
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> Pretended:
        return Pretended(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendedDevice(TorchDispatchMode):
    """Makes and moves tensors where the pretended device is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = kwargs.get("device")
        here = place is not None and torch.device(place).type == "meta"
        if here or any(issubclass(kind, Pretended) for kind in types):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


# What the host waits for: the device's answer decides what it does next, or how large the result is.
_READS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten._unique2.default: "unique",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
}
_reads: list[str] | None = None


@contextmanager
def reads_from_the_device() -> Iterator[list[str]]:
    """What the host waited for in the meantime, by name, on the pretended device."""
    global _reads
    before, _reads = _reads, []
    try:
        yield _reads
    finally:
        _reads = before


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [value for value in _leaves((args, kwargs)) if isinstance(value, Tensor)]
    ours = [value for value in given if isinstance(value, Pretended)]
    place = kwargs.get("device")
    to_cpu = bool(ours) and place is not None and torch.device(place).type == "cpu"
    copies = func is torch.ops.aten.copy_.default
    indexes = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
    if ours and not copies and not (indexes and isinstance(args[0], Pretended)):
        strangers = [value for value in given if not isinstance(value, Pretended) and value.dim() > 0]
        if strangers:
            raise RuntimeError(f"{func} mixes tensors of the CPU with those of a device.")
    _note(func, args, to_cpu or (copies and not isinstance(args[0], Pretended)))
    held = tree_map(lambda value: value.held if isinstance(value, Pretended) else value, (args, kwargs))
    if place is not None:
        held[1]["device"] = torch.device("cpu")
    if func is torch.ops.aten._fused_sdp_choice.default:
        return 0  # the plain one: what a CPU would choose is no kernel of a device
    found = func(*held[0], **held[1])
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
        return args[0] if "out" not in kwargs else kwargs["out"]
    if to_cpu:
        return found
    return tree_map(lambda value: Pretended(value) if isinstance(value, Tensor) else value, found)


def _note(func: Any, args: Any, to_cpu: bool) -> None:
    if _reads is None:
        return
    if func in _READS:
        _reads.append(_READS[func])
    elif to_cpu:
        _reads.append("copy to the host")
    elif func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            _reads.append("index by a mask")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    else:
        yield value
