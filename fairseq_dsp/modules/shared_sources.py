"""Keys and values of a source sentence, kept once for all hypotheses of it. Called by `attention`.

fairseq's beam search repeats a sentence for every hypothesis and does not tell a transformer how often. So who may share is
found in the data, and every reordering is looked at: hypotheses that no longer lie side by side get copies of their own.

To look is to wait for the device. All layers see the same source and are reordered alike, so the first of them looks and
leaves its answer with the caches of the search, where every other layer takes it once.
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
    differs = (key[:, 1:] != key[:, :-1]).any(2).any(0)
    if key_padding_mask is not None:
        differs = differs | (key_padding_mask[1:] != key_padding_mask[:-1]).any(1)
    starts: list[bool] = differs.tolist()  # the one look: what a run is follows on the host
    repeats = key.size(1)
    for before, starts_here in enumerate(starts):
        if starts_here:
            repeats = math.gcd(repeats, before + 1)
    return repeats


def neighbours_of_search(
    search: dict[str, dict[str, Tensor | None]], layer: str, key: Tensor, key_padding_mask: Tensor | None
) -> int:
    """`equal_neighbours`, looked at once for all layers of a step.

    Args:
        search: all caches of the search.
        layer: name of the cache of the layer that asks.
        key: as there.
        key_padding_mask: as there.
    """
    if "source of all layers" in search:
        known = search["source of all layers"]
        repeats = known["repeats"]
        if repeats is not None and layer not in known and known["key"] is key and known["mask"] is key_padding_mask:
            known[layer] = None
            return int(repeats)
    found = equal_neighbours(key, key_padding_mask)
    answer: dict[str, Tensor | None] = {"key": key, "mask": key_padding_mask, "repeats": number(found), layer: None}
    search["source of all layers"] = answer
    return found


def order_of_shared(new_order: Tensor, shared_by: int, entries: int) -> tuple[Tensor, int, bool]:
    """How a cache with an entry for `shared_by` hypotheses each follows a reordering of the hypotheses.

    Args:
        new_order: for every hypothesis from now on, which one it continues: [B].
        shared_by: hypotheses that share an entry, side by side.
        entries: how many entries the cache has.

    Returns:
        the entries to select, how many hypotheses share each of them afterwards (as before, or 1), and whether these are
        all entries as they are, so that nothing need be done.
    """
    if shared_by == 1:
        return new_order, 1, False
    chosen = torch.div(new_order, shared_by, rounding_mode="floor")
    if chosen.size(0) % shared_by != 0:
        return chosen, 1, False
    firsts = chosen[::shared_by]
    still_shared = (chosen == firsts.repeat_interleave(shared_by, output_size=chosen.size(0))).all()
    unmoved = still_shared.new_zeros(())
    if firsts.size(0) == entries:
        unmoved = (firsts == torch.arange(entries, device=firsts.device)).all()
    answers: list[bool] = torch.stack([still_shared, unmoved]).tolist()  # the one look
    if answers[0]:
        return firsts, shared_by, answers[1]
    return chosen, 1, False


def order_of_search(
    search: dict[str, dict[str, Tensor | None]], layer: str, new_order: Tensor, shared_by: int, entries: int
) -> tuple[Tensor, int, bool]:
    """`order_of_shared`, looked at once for all layers of a step.

    Args:
        search: all caches of the search.
        layer: name of the cache of the layer that asks.
        new_order: as there.
        shared_by: as there.
        entries: as there.
    """
    if "source of all layers" in search:
        search.pop("source of all layers")  # the source is reordered too, and must not be kept in memory by us
    if shared_by == 1:
        return new_order, 1, False
    asked = str(shared_by) + " " + str(entries)
    if "order of all layers" in search:
        known = search["order of all layers"]
        known_order, known_number, known_unmoved = known["order"], known["still shared by"], known["unmoved"]
        if layer not in known and asked in known and known["new order"] is new_order:
            assert known_order is not None
            assert known_number is not None
            assert known_unmoved is not None
            known[layer] = None
            return known_order, int(known_number), int(known_unmoved) > 0
    order, still_shared_by, unmoved = order_of_shared(new_order, shared_by, entries)
    answer: dict[str, Tensor | None] = {"new order": new_order, "order": order, asked: None, layer: None}
    answer["still shared by"], answer["unmoved"] = number(still_shared_by), number(int(unmoved))
    search["order of all layers"] = answer
    return order, still_shared_by, unmoved


def number(value: int) -> Tensor:
    """A number among tensors: on the CPU wherever those are, for it is read at every step."""
    return torch.tensor(value, device="cpu")
