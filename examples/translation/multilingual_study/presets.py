"""How large a study is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A model, its data and its trainings.

    Attributes:
        layers: of encoder and of decoder. Likewise:
        heads: of every sublayer.
        width: of the embeddings; `inner` of the feed-forward layers.
        kept: K, of 3 · layers · heads.
        words: pieces of the one vocabulary; None for the words of the text.
        most: training sentences of a pair at most.
        fewest: likewise of the low-resource pair.
        held_out: sentences of a validation or test set at most.
        epochs: of a training from the start; `tuning` of one that goes on from a pruned model; `special` of one that goes on
            for one pair alone.
        max_tokens: of a batch.
        rate: the largest learning rate, reached after `warmup` updates; a tenth of it where a training goes on, and half of it, after a fifth of
            the updates, where it goes on for `special` epochs.
        batches: of each pair that are scored.
        randoms: random choices.
        seeds: of the trainings.
    """

    layers: int
    heads: int
    width: int
    inner: int
    kept: int
    words: int | None
    most: int
    fewest: int
    held_out: int
    epochs: int
    tuning: int
    special: int
    max_tokens: int
    rate: float
    warmup: int
    batches: int
    randoms: int
    seeds: tuple[int, ...]

    @property
    def total(self) -> int:
        return 3 * self.layers * self.heads

    @property
    def most_kept(self) -> int:
        """Heads that stay where a third goes, which Kim et al. found to do no harm."""
        return self.total - self.total // 3


PRESETS = {
    "small": Preset(2, 4, 128, 256, 8, 4000, 10000, 2000, 500, 12, 3, 8, 2048, 2e-3, 300, 40, 5, (1, 2)),
    "smoke": Preset(1, 2, 16, 16, 2, None, 120, 60, 20, 2, 1, 1, 800, 5e-3, 4, 2, 2, (1, 2)),
}
