"""Whether two models compute the same: what a rewritten or folded checkpoint must before anyone sees it."""

from __future__ import annotations

from typing import Any

import torch

# Largest difference between log-probabilities of masked and rewritten model, both in float32.
TOLERANCE = 1e-4


def largest_difference(model: Any, other: Any) -> float:
    """Largest difference of log-probabilities on a random batch with padding, in float32.

    Both models are left in float32 and evaluation mode.
    """
    generator = torch.Generator().manual_seed(0)
    words = [len(side.embed_tokens.weight) for side in (model.encoder, model.decoder)]
    longest = min(7, *model.max_positions())
    source, target = (torch.randint(min(4, n - 1), n, (3, longest), generator=generator) for n in words)
    lengths = torch.tensor([longest, max(longest - 2, 1), max(longest - 4, 1)])
    source[torch.arange(longest) >= lengths[:, None]] = model.encoder.padding_idx
    outputs = []
    with torch.no_grad():
        for each in (model, other):
            each.float().eval()
            net_output = each(source, lengths, target)
            outputs.append(each.get_normalized_probs(net_output, log_probs=True, sample={"target": target}))
    return (outputs[0] - outputs[1]).abs().max().item()
