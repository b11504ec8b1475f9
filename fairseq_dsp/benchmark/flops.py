"""Floating-point operations of a run by torch's formulas, and which attention kernels it used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_CPU_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"  # torch's counter does not know it
_SOFTMAX = ("_softmax", "_safe_softmax")


def count(run: Callable[[], Any]) -> tuple[int, str]:
    """Counts one call.

    Returns:
        floating-point operations of matrix products and attention, backward pass included, and the attention kernels:
        torch's names for fused ones, `unfused` for a softmax between two matrix products, joined by `+`.
    """
    with _Counter() as counter:
        run()
    return counter.flops, "+".join(sorted(counter.kernels))


class _Counter(TorchDispatchMode):
    """Adds up what torch's flop_counter says of every operation.

    torch's own FlopCounterMode also follows the modules, and fails where one returns its bias as it is, as an attention
    without heads does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func._overloadpacket
        name = operation.__name__
        if operation in flop_registry:
            self.flops += flop_registry[operation](*args, **kwargs, out_val=result)
        elif name == _CPU_KERNEL:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif name == _CPU_KERNEL + "_backward":
            self.flops += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        if "dot_product" in name and "backward" not in name:
            self.kernels.add(name.removeprefix("_scaled_dot_product_"))
        elif name in _SOFTMAX and args[0].dim() > 2:  # that over the heads' importance has one dimension
            self.kernels.add("unfused")
        return result
