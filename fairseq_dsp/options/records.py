"""What options say, read once into records: of a transformer, a training, its optimizer, a task, a criterion.

These records, `Languages` and `PruningConfig` ask a cfg for options, and nobody else does; `tests/unit/test_imports.py` holds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import PruningConfig, architecture_of, get_option, given_options
from fairseq_dsp.units.groups import Neurons, with_groups
from fairseq_dsp.units.layout import Grid
from fairseq_dsp.units.neurons import NEURONS

_LAST = "checkpoint_last.pt"  # what fairseq takes for "no `--restore-file`"

Options = argparse.Namespace | DictConfig


@dataclass(frozen=True)
class Side:
    """What a transformer's options say of its encoder or decoder; None where they do not say.

    Attributes:
        layers: how many.
        heads: of an attention.
        neurons: of a feed-forward network.
        pre_norm: whether norms come before sublayers.
    """

    layers: int | None
    heads: int | None
    neurons: int | None
    pre_norm: bool


@dataclass(frozen=True)
class TransformerOptions:
    """What a transformer's options say of it.

    Attributes:
        architecture: its name; None where they give none.
        encoder: see `Side`. Likewise:
        decoder: the decoder.
        activation: name of the activation function.
        shares_dictionary: whether source and target have one dictionary (`--share-all-embeddings`).
        ffn_group: neurons of a unit (`--ffn-group`); None where neurons are no units.
    """

    architecture: str | None
    encoder: Side
    decoder: Side
    activation: str
    shares_dictionary: bool
    ffn_group: int | None

    @classmethod
    def of(cls, cfg: Options) -> TransformerOptions:
        """Reads a cfg of either kind, as it is: with `completed`, what an architecture fills in counts too."""
        given = given_options(cfg)
        sides = [
            Side(
                *(None if (value := given.get(f"{side}_{name}")) is None else int(value) for name in ("layers", "attention_heads", "ffn_embed_dim")),
                pre_norm=bool(given.get(f"{side}_normalize_before")),
            )
            for side in ("encoder", "decoder")
        ]  # fmt: skip
        shared, group = bool(given.get("share_all_embeddings")), given.get("ffn_group")
        activation = given.get("activation_fn", "relu")
        return cls(architecture_of(cfg), *sides, activation, shared, None if group is None else int(group))

    @property
    def grid(self) -> Grid | None:
        """The heads, and the neurons where they are grouped; None where the options do not say yet.

        Raises:
            Refusal: the neurons cannot be grouped so.
        """
        heads = [None if None in (side.layers, side.heads) else (side.heads,) * side.layers for side in self._sides]
        if None in heads:
            return None
        grid = Grid.of_heads(heads[0], heads[1], heads[1])
        if self.ffn_group is None:
            return grid
        return None if self.neurons is None else with_groups(grid, self.neurons, self.ffn_group)

    @property
    def neurons(self) -> Neurons | None:
        """The neurons of every feed-forward network; None where the options do not say yet."""
        found = {}
        for stack in NEURONS.stacks:
            side = getattr(self, stack.side)
            if None in (side.layers, side.neurons):
                return None
            found[stack.name] = (side.neurons,) * side.layers
        return found

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.encoder, self.decoder


@dataclass(frozen=True)
class TrainingOptions:
    """What fairseq's options say of a training: where it begins and where it ends. Attributes are named as the options are.

    Attributes:
        save_dir: None where the options are a model's alone.
        max_epoch: 0 for no limit, as `max_update`.
    """

    save_dir: str | None = None
    restore_file: str = _LAST
    checkpoint_suffix: str = ""
    continue_once: str | None = None
    finetune_from_model: str | None = None
    reset_optimizer: bool = False
    reset_dataloader: bool = False
    max_epoch: int = 0
    max_update: int = 0

    @classmethod
    def of(cls, options: Any) -> TrainingOptions:
        """Reads fairseq's options, flat, of any kind."""
        values = values_of(cls, options)
        kinds = {option.name: {"bool": bool, "int": int}.get(str(option.type), str) for option in fields(cls)}
        return cls(**{name: kinds[name](value) for name, value in values.items() if value is not None})

    @property
    def is_last_restored(self) -> bool:
        """Whether fairseq goes on from what it left in the save folder, as it does by default."""
        return self.restore_file == _LAST


@dataclass(frozen=True)
class OptimizerOptions:
    """By which optimizer fairseq trains, and in which precision, as the options stand. Attributes are named as the options are."""

    fp16: Any = None
    bf16: Any = None
    tpu: Any = None
    optimizer: str | None = None
    importance_lr_of: str | None = None

    @classmethod
    def of(cls, options: Any) -> OptimizerOptions:
        """Reads fairseq's options, flat, of any kind."""
        return cls(**values_of(cls, options))


@dataclass(frozen=True)
class TaskOptions:
    """What fairseq's options say of a task, as they stand there; None where they do not say. Attributes are named as the options are.

    Attributes:
        unpruned_heads: the budget, where the task trains with one. Likewise:
        seed: that of the training.
        train_subset: name of the data set that is trained on. Likewise:
        valid_subset: names of those that are validated, with commas between.
        update_freq: batches of an update; a list has a number for each epoch.
        source_dict: a dictionary's path, for all languages of the side. Likewise:
        target_dict: of the other side;
        fixed_dictionary: of both.
    """

    data: Any = None
    source_lang: str | None = None
    target_lang: str | None = None
    # a training's
    unpruned_heads: Any = None
    seed: Any = None
    train_subset: str | None = None
    valid_subset: str | None = None
    log_interval: int | None = None
    update_freq: Any = None
    ddp_backend: Any = None
    # a validation's
    disable_validation: bool | None = None
    max_valid_steps: int | None = None
    best_checkpoint_metric: str | None = None
    maximize_best_checkpoint_metric: bool | None = None
    eval_bleu: bool | None = None
    eval_bleu_args: str | None = None
    # of several language pairs
    source_dict: str | None = None
    target_dict: str | None = None
    fixed_dictionary: str | None = None
    extra_data: Any = None
    extra_lang_pairs: Any = None
    enable_lang_ids: bool | None = None

    @classmethod
    def of(cls, options: Any) -> TaskOptions:
        """Reads a task's options, flat, of any kind."""
        return cls(**values_of(cls, options))

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """Source and target language, of a task of one pair."""
        return self.source_lang, self.target_lang


@dataclass(frozen=True)
class CriterionOptions:
    """What the options of a criterion say, as they stand there; None where they do not say. Attributes are named as the options are.

    Attributes:
        name: of the criterion.
    """

    name: str | None = None
    teacher: str | None = None
    distillation: float | None = None
    ignore_prefix_size: int | None = None

    @classmethod
    def of(cls, options: Any) -> CriterionOptions:
        """Reads a criterion's options, flat, of any kind."""
        return cls(**{**values_of(cls, options), "name": get_option(options, "_name")})


def values_of(record: Any, options: Any) -> dict[str, Any]:
    """What options say of each field of a dataclass, of ours or of fairseq, as it stands there; None where they do not say."""
    return {option.name: get_option(options, option.name) for option in fields(record)}


def given_of_ours(cfg: Any) -> dict[str, Any]:
    """What a model's cfg gives of our own options, as it stands there: values that nobody has looked at yet."""
    return {name: value for name, value in values_of(PruningConfig, cfg).items() if value is not None}


def saved_options(state: Mapping[str, Any], part: str) -> Any:
    """Options that a checkpoint was trained with, of its `model`, `task` or `criterion`; None where the file has none.

    Args:
        state: what the file holds. Earlier versions of fairseq wrote the options of all parts as one, flat.
    """
    cfg = state.get("cfg")
    return get_option(cfg, part) if cfg else state.get("args")


def completed(cfg: Options | Mapping[str, Any]) -> argparse.Namespace:
    """A model's options, and what its architecture fills in where they give nothing. The cfg stays as it is.

    Args:
        cfg: flat, of any age; an architecture that is not registered fills in nothing.
    """
    found = argparse.Namespace(**given_options(cfg))
    fill_in = ARCH_CONFIG_REGISTRY.get(architecture_of(found))
    if fill_in is not None:
        fill_in(found)
    return found


def defaults_of(cfg: Options) -> dict[str, object]:
    """What the options of a cfg's architecture are where nobody gives any."""
    found = argparse.Namespace()
    ARCH_CONFIG_REGISTRY.get(architecture_of(cfg), ARCH_CONFIG_REGISTRY["transformer"])(found)
    return vars(found)
