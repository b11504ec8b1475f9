"""Validation of several language pairs: batches of one pair each, and figures of each pair, their mean and the worst.

`PairsDataset` holds the pairs' sentences, `PairFigures` makes what the log says of them. Called by `multilingual`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fairseq.data import ConcatDataset, FairseqDataset
from fairseq.logging import metrics

PAIR = "pair"  # of a batch, by its number
MEAN, WORST = "mean", "worst"
_ORDER = 4  # of BLEU's n-grams
_COUNTS = (
    "_bleu_sys_len",
    "_bleu_ref_len",
    *(f"_bleu_{kind}_{n}" for kind in ("counts", "totals") for n in range(_ORDER)),
)
_SUMS = ("loss", "nll_loss", "ntokens", "sample_size", *_COUNTS)
_LOWER, _HIGHER = ("loss", "nll_loss"), ("bleu",)


class PairsDataset(ConcatDataset):
    """The sentences of several language pairs, one pair's after the other's; a batch has sentences of one pair.

    Args:
        pairs: each pair's data set, in fairseq's order.
    """

    def __init__(self, pairs: Mapping[str, FairseqDataset]) -> None:
        super().__init__(list(pairs.values()))
        self.pairs = list(pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair, place = self._get_dataset_and_sample_index(index)
        return {**self.datasets[pair][place], PAIR: pair}

    def collater(self, samples: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """fairseq's batch, with the number of its pair."""
        if not samples:
            return {}
        return {**self.datasets[samples[0][PAIR]].collater(samples, **options), PAIR: samples[0][PAIR]}

    def batch_by_size(self, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        """fairseq's batches of each pair."""
        places = np.asarray(indices, dtype=np.int64)
        owners = np.searchsorted(self.cumulative_sizes, places, side="right")
        parts = [places[owners == pair] for pair in range(len(self.pairs))]
        make = super().batch_by_size
        return [batch for part in parts if len(part) for batch in make(part, *args, **kwargs)]


class PairFigures:
    """Loss, likelihood and BLEU of each pair, `loss_en-de`; the mean over pairs, `loss_mean`; the worst pair's, `loss_worst`.

    Args:
        pairs: names of all pairs.
        bleu: whether BLEU is computed.
    """

    def __init__(self, pairs: Sequence[str], bleu: bool) -> None:
        self.pairs = list(pairs)
        self.names = (*_LOWER, *_HIGHER) if bleu else _LOWER

    def known(self) -> dict[str, str]:
        """Names of the figures, each with the one of fairseq that it is like."""
        return {f"{name}_{part}": name for name in (*_LOWER, *_HIGHER) for part in (MEAN, WORST, *self.pairs)}

    def tagged(self, pair: str, logged: Mapping[str, Any]) -> dict[str, Any]:
        """What a batch of a pair logs for each pair; the same names for every batch, for processes add up what they log."""
        names = [name for name in _SUMS if name in logged]
        return {f"{name}:{each}": logged[name] if each == pair else 0 for each in self.pairs for name in names}

    def reduce(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Logs the figures of batches that `tagged` has marked; of others, nothing."""
        if not any(f"sample_size:{self.pairs[0]}" in log for log in logs):
            return
        for pair in self.pairs:
            sums = {name: float(sum(log.get(f"{name}:{pair}", 0) for log in logs)) for name in _SUMS}
            for name, size in (("loss", sums["sample_size"]), ("nll_loss", sums["ntokens"])):
                if size:
                    metrics.log_scalar(f"{name}_{pair}", sums[name] / size / np.log(2), size, priority=400, round=3)
            if "bleu" in self.names and sums["_bleu_ref_len"]:  # translations may be empty
                _log_bleu(f"_{pair}", sums)
        if "bleu" in self.names:
            _log_bleu("", {name: float(sum(log.get(name, 0) for log in logs)) for name in _COUNTS})
        for name in self.names:
            worst = min if name in _HIGHER else max
            for part, value in ((MEAN, _mean), (WORST, worst)):
                metrics.log_derived(f"{name}_{part}", self._over_pairs(name, value), priority=390)

    def _over_pairs(self, name: str, value: Any) -> Any:
        def figure(meters: Any) -> float:
            if name in _HIGHER:
                found = [_bleu(meters, f"_{pair}") for pair in self.pairs if f"_bleu_counts_{pair}" in meters]
            else:
                found = [meters[f"{name}_{pair}"].avg for pair in self.pairs if f"{name}_{pair}" in meters]
            return round(float(value(found)), 3) if found else 0.0  # a process may have no batch left

        return figure


def counts_of(bleu: Any) -> dict[str, Any]:
    """What sacreBLEU counted, by the names that fairseq gives it."""
    counted = {"counts": bleu.counts, "totals": bleu.totals}
    named = {f"_bleu_{kind}_{n}": values[n] for kind, values in counted.items() for n in range(_ORDER)}
    return {"_bleu_sys_len": bleu.sys_len, "_bleu_ref_len": bleu.ref_len, **named}


def _log_bleu(part: str, sums: Mapping[str, float]) -> None:
    for kind in ("counts", "totals"):
        metrics.log_scalar(f"_bleu_{kind}{part}", np.array([sums[f"_bleu_{kind}_{n}"] for n in range(_ORDER)]))
    for name in ("_bleu_sys_len", "_bleu_ref_len"):
        metrics.log_scalar(f"{name}{part}", sums[name])
    metrics.log_derived(f"bleu{part}", lambda meters: _bleu(meters, part), priority=400)


def _bleu(meters: Any, part: str) -> float:
    """sacreBLEU from the counts of all batches, as fairseq's translation task computes it."""
    from sacrebleu.metrics import BLEU

    counts, totals = ([int(n) for n in meters[f"_bleu_{kind}{part}"].sum] for kind in ("counts", "totals"))
    lengths = (int(meters[f"_bleu_{side}_len{part}"].sum) for side in ("sys", "ref"))
    return round(BLEU.compute_bleu(counts, totals, *lengths, smooth_method="exp").score, 2)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
