"""What is asked of the weights in a file. Called by `files/checkpoint` and `options/starting`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal


def refuse_broken_weights(weights: dict[str, Any], path: str) -> None:
    """Looks at all weights of a checkpoint.

    Raises:
        Refusal: some are no plain tensors, or not finite; the sentence names them.
    """
    strange = [
        name
        for name, value in weights.items()
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided
    ]
    if strange:
        raise Refusal(
            f"the checkpoint's weights must be plain tensors, but {path} has others: {str(strange[:5])[:200]}."
        )
    broken = [
        name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise Refusal(
            f"the checkpoint's weights must be finite, but {path} has NaN or infinity in {', '.join(broken[:5])}."
        )
