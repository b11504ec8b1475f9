"""Keys and values of a source sentence, kept once for all hypotheses of it. Called by `attention`.

fairseq's beam search repeats a sentence for every hypothesis and does not tell a transformer how often. So who may share is
found in the data, and every reordering is looked at: hypotheses that no longer lie side by side get copies of their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def equal_neighbours(key: Tensor, key_padding_mask: Tensor | None) -> int:
    """How many hypotheses, side by side, may share what is computed of their source: the largest n such that the batch
    is made of runs of n equal entries. Found in the data, so it needs no beam size, which fairseq tells nobody.

    Args:
        key: [S, B, C].
        key_padding_mask: [B, S], or None.

    Returns:
        n, a divisor of B; 1 where the runs are uneven.
    """
    if key.size(0) == 0 or key.size(1) == 0:
        return 1
    # A first guess from one number of each word, which spares the look at all of them where nothing repeats.
    starts: list[int] = torch.nonzero((key[:, 1:, 0] != key[:, :-1, 0]).any(0)).flatten().tolist()
    repeats = key.size(1)
    for start in starts:
        repeats = math.gcd(repeats, start + 1)
    runs = key.view(key.size(0), -1, repeats, key.size(2))
    if repeats > 1 and not torch.equal(runs, runs[:, :, :1].expand_as(runs)):
        return 1
    if repeats > 1 and key_padding_mask is not None:
        masks = key_padding_mask.view(-1, repeats, key_padding_mask.size(1))
        if not torch.equal(masks, masks[:, :1].expand_as(masks)):
            return 1
    return repeats


def order_of_shared(new_order: Tensor, shared_by: int) -> tuple[Tensor, int]:
    """How a cache with an entry for `shared_by` hypotheses each follows a reordering of the hypotheses.

    Args:
        new_order: for every hypothesis from now on, which one it continues: [B].
        shared_by: hypotheses that share an entry, side by side.

    Returns:
        the entries to select, and how many hypotheses share each of them afterwards: as before, or 1.
    """
    if shared_by == 1:
        return new_order, 1
    entries = torch.div(new_order, shared_by, rounding_mode="floor")
    if entries.size(0) % shared_by == 0:
        firsts = entries[::shared_by]
        if torch.equal(entries, firsts.repeat_interleave(shared_by)):
            return firsts, shared_by
    return entries, 1
