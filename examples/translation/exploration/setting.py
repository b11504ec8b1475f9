"""What all arms of an exploration share, and what one arm is: pure data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fairseq_dsp.units.layout import Grid


@dataclass(frozen=True)
class Setting:
    """Sizes and training of the dense models; results of another setting are never compared.

    Attributes:
        layers: of the encoder, and of the decoder.
        heads: of a sublayer.
        width: of the model, and `ffn` of its feed-forward layers; norms come first.
        dropout: in dense training and in fine-tuning.
        max_tokens: of a training batch, padding included.
        lr: the largest learning rate of the dense models, after `warmup` updates; it falls as 1 / sqrt(update) then.
        dense_updates: of a dense model.
        updates: of every arm, those that choose included.
    """

    layers: int = 3
    heads: int = 8
    width: int = 128
    ffn: int = 256
    dropout: float = 0.2
    max_tokens: int = 4096
    lr: float = 3e-3
    warmup: int = 400
    dense_updates: int = 4500
    updates: int = 600

    @property
    def grid(self) -> Grid:
        return Grid.even(self.layers, self.heads)


@dataclass(frozen=True)
class Job:
    """One arm at one budget with one seed.

    Attributes:
        arm: its name.
        kept: K; None for a budget in parameters, which `share` gives.
        seed: of the dense model, the batches and what is drawn.
        family: the function of `arms` that chooses.
        options: of the family and of what follows it; `arms` lists them.
        lr: the largest learning rate of the arm's updates, after `warm` updates.
        schedule: `linear`, to zero at the last update, or `isqrt`.
        share: of the parameters of heads and feed-forward networks that stays, for arms that choose among both.
        scratch: begins with weights before their first update, not with a trained model, and has as many updates as one.
    """

    arm: str
    kept: int | None
    seed: int
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 4e-3
    warm: int = 30
    schedule: str = "linear"
    share: float | None = None
    scratch: bool = False

    @property
    def details(self) -> dict[str, Any]:
        """What a line of results says of the arm under `a`."""
        start = {"scratch": 1} if self.scratch else {}
        return {"family": self.family, "name": self.arm, **start, **self.options}

    def setting_of(self, setting: Setting) -> Setting:
        """The setting, with the arm's own number of updates."""
        return replace(setting, updates=setting.dense_updates) if self.scratch else setting

    @property
    def seeds(self) -> list[int]:
        """Those of the dense models that it needs: its own first."""
        if self.scratch:
            return []
        return [self.seed, *(self.options[name] for name in ("taught_by",) if name in self.options)]

    @property
    def budget_text(self) -> str:
        return budget_text(self.kept if self.share is None else self.share)


def budget_text(budget: float | None) -> str:
    """A budget as tables have it: K heads, or a share of the parameters that can go."""
    return f"{budget} heads" if isinstance(budget, int) else f"{budget:.3g} of what can go"
