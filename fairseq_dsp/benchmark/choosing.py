"""Trains the arms of one seed on the lookup task and tells what is deployed. Called by `choice`.

The model, the gates, the methods, the criterion and the optimizer are those that fairseq-train uses. Arms of a seed share the
task, the initial weights and the batches, so that they can be compared in pairs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

from fairseq_dsp.benchmark import lookup, roles
from fairseq_dsp.benchmark.arms import (
    DENSE,
    DISTILLATION,
    FLOOR,
    FROM_THE_DENSE,
    IMPORTANCE_FROM,
    OF_THE_TRAINING,
    Arm,
    control_layout,
)
from fairseq_dsp.benchmark.choice_optimizer import optimizer_of, optimizer_options
from fairseq_dsp.benchmark.lookup import SPECIAL, WORDS, Lookup, digits
from fairseq_dsp.checkpoints.batches import loss_of, words_of
from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import noted
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.recipe import derive
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.objections import budget_out_of_range, objections
from fairseq_dsp.plugin.building import VocabularyTask
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.plugin.importance_start import importance_of
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.plugin.teacher import Teacher
from fairseq_dsp.scoring import make_scorer
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.floors import floors_of, objection_to_floor, parse_floor, top_k_above_floors
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Grid, Layout

_SIDES = ("encoder", "decoder")
_WINDOW = 0.4  # of the updates, until the heads are fixed, where the arm does not say
_WARM_UP, _CONSTANT = 0.1, 0.5  # of the updates, of the weights' learning rate; then it falls to zero
_VALIDATION_SEED, _SCORING_SEED = 1_000_003, 2_000_003  # added to the arm's: sentences that training does not see


@dataclass(frozen=True)
class Setting:
    """What all arms share; results of another setting are never compared.

    Attributes:
        variant: `plain`, or `roles`: heads attend where they must, and are not exchangeable.
        start: `scratch`, or `dense`: from the weights of a dense model of the same seed.
        layers: of the encoder, and of the decoder.
        heads: of a sublayer.
        width: of the model, and of its feed-forward layers.
        length: words of a sentence.
        batch: sentences of an update.
        updates: of every arm.
        dense_updates: of the dense model that arms start from; 0 from scratch.
        lr: the largest learning rate of an arm's weights.
        dense_lr: likewise of the dense model.
        validated: sentences of the validation.
    """

    variant: str = "plain"
    start: str = "scratch"
    layers: int = 2
    heads: int = 4
    width: int = 64
    length: int = 16
    batch: int = 32
    updates: int = 1000
    dense_updates: int = 0
    lr: float = 5e-3
    dense_lr: float = 3e-3
    validated: int = 256

    @property
    def grid(self) -> Grid:
        return Grid.even(self.layers, self.heads)


@dataclass(frozen=True)
class Outcome:
    """The deployed model of an arm on sentences that it was not trained on.

    Attributes:
        accuracy: share of the words that are right.
        loss: nats a word.
        lookups: share of each of the three digits that is right: source_t, source_p(t), target_t-3.
        layout: the heads that are deployed.
        seconds: of the arm's updates and scoring, of the process alone.
    """

    accuracy: float
    loss: float
    lookups: tuple[float, float, float]
    layout: Layout
    seconds: float


class Bench:
    """The task, the batches and, where arms start from it, the dense model of one seed.

    Args:
        setting: what all arms share.
        seed: of the task, the initial weights, the batches, and what methods draw.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.lookup = Lookup.draw(seed, setting.length)
        self._dense: dict[str, Tensor] | None = None

    def run(self, arm: Arm, k: int, source: Layout | None = None) -> Outcome:
        """Trains an arm with k heads, deploys it, measures it.

        Args:
            source: of `shuffled`: what the arm that it takes its counts from has deployed.

        Raises:
            SystemExit: the arm's options are not fit; `objections` knows the reasons.
        """
        state = self._dense_state() if self.setting.start == DENSE else None
        begin = time.process_time()
        options = self._options(arm, k, source)
        model = self.build(options, state)
        if IMPORTANCE_FROM in options:
            model.head_gates.importance.data.copy_(importance_of(self._scores(options[IMPORTANCE_FROM], {})))
        self.train(model, self.setting.updates, self.setting.lr, options)
        seconds = time.process_time() - begin
        model.eval()
        model.bake(k if isinstance(model.head_gates, NestedGates) else None)
        return self.measure(model, seconds)

    def objections(self, arm: Arm, k: int) -> list[str]:
        """Sentences on an arm that cannot be run; empty if it can."""
        found: list[str] = []
        if not 0 <= k <= self.setting.grid.total:
            return [budget_out_of_range(k, self.setting.grid.total)]
        if arm.is_scorer and self.setting.start != DENSE:
            return [f"`--start` must be {DENSE} for `--methods {arm.name}`, which scores a trained model's heads."]
        if arm.is_scorer:
            with noted(found):
                floor = _floor(arm)
                found += filter(None, [objection_to_floor(self.setting.grid, floor, k) if k else None])
            return found
        if arm.source is not None:
            return []
        if "unpruned_heads" in dict(arm.options):
            low, high = PruningConfig(unpruned_heads=dict(arm.options)["unpruned_heads"]).budget_range or (0, -1)
            if not low <= k <= high:
                return [f"`--methods {arm.name}:unpruned_heads` must be a range of budgets with {k} in it."]
        for option in FROM_THE_DENSE:
            if option in dict(arm.options) and self.setting.start != DENSE:
                return [f"`--start` must be {DENSE} for `--methods {arm.name}:{option}`, which asks the dense model."]
        try:
            with noted(found):
                optimizer_options(dict(arm.options))
                found += objections(self._cfg(self._options(arm, k)))
        except ValueError as error:
            found.append(f"`--methods {arm.name}` cannot keep {k} heads: {error}")
        return found

    def build(self, options: dict[str, Any], state: dict[str, Tensor] | None = None) -> DspTransformerModel:
        """A model of the setting.

        Args:
            options: ours, as a user gives them.
            state: of a dense model to start from.
        """
        cfg = self._cfg(options)
        embeddings = {f"{side}.embed_tokens.weight": torch.empty(WORDS + SPECIAL, 0) for side in _SIDES}
        torch.manual_seed(self.seed)
        model = ARCH_MODEL_REGISTRY[cfg.arch].build_model(cfg, VocabularyTask(embeddings, cfg))
        if self.setting.variant == "roles":
            roles.freeze_roles(model, self.lookup, self.seed)
        if state is not None:
            model.adopts_dense_state = True
            model.load_state_dict(dict(state))
        return model

    def train(self, model: DspTransformerModel, updates: int, lr: float, options: dict[str, Any]) -> None:
        """Trains the model in place, as fairseq's trainer and our task do."""
        setting = self.setting
        criterion = LabelSmoothedCrossEntropyDspCriterion(
            argparse.Namespace(target_dictionary=model.decoder.dictionary), sentence_avg=False, label_smoothing=0.0
        )
        if DISTILLATION in options:
            dense = self.build({"head_layout": str(Layout.full(setting.grid))}, self._dense_state())
            criterion.teach(Teacher(dense), float(options[DISTILLATION]))
        optimizer = optimizer_of(model, lr, options)
        generator = torch.Generator().manual_seed(self.seed)
        model.train()
        for update in range(updates):
            rising, falling = (update + 1) / (_WARM_UP * updates), (updates - update) / ((1 - _CONSTANT) * updates)
            optimizer.set_lr(lr * min(1.0, rising, falling))
            model.set_num_updates(update)
            loss, sample_size, _ = criterion(model, self.lookup.batch(setting.batch, generator))
            optimizer.zero_grad()
            (loss / sample_size).backward()
            optimizer.clip_grad_norm(1.0)
            optimizer.importance_is_fixed = model.head_gates is not None and model.head_gates.is_fixed
            optimizer.step()
            if model.head_gates is not None:
                model.head_gates.end_update()
        model.set_num_updates(updates)

    @torch.no_grad()
    def measure(self, model: DspTransformerModel, seconds: float) -> Outcome:
        """The model, in evaluation mode, on the validation's sentences."""
        generator = torch.Generator().manual_seed(_VALIDATION_SEED + self.seed)
        batch = self.lookup.batch(self.setting.validated, generator)
        target = batch["target"]
        found = model(**batch["net_input"])[0].argmax(dim=-1)
        lookups = (digits(found) == digits(target)).double().mean(dim=(1, 2)).tolist()
        return Outcome(
            accuracy=float((found == target).double().mean()),
            loss=float(loss_of(model, batch).sum()) / target.numel(),
            lookups=tuple(lookups),  # type: ignore[arg-type]
            layout=model.deployed_layout(),
            seconds=seconds,
        )

    def _options(self, arm: Arm, k: int, source: Layout | None = None) -> dict[str, Any]:
        """The arm as options of ours."""
        if arm.name in METHODS and not arm.is_scorer:
            given = dict(arm.options)
            budget = {} if {"head_layout", "unpruned_heads"} & set(given) else {"unpruned_heads": k}
            given = {**given, **budget, "head_selection": arm.name}
            if "recipe" in given:
                given |= derive(PruningConfig.from_model_cfg(argparse.Namespace(**given)), self.setting.updates)
            return given
        if arm.is_scorer:
            return {"head_layout": str(self._scored(arm, k))}
        grid = self.setting.grid
        needed = roles.needed_heads(grid, self.seed) if self.setting.variant == "roles" else lookup.needed_heads(grid)
        return {"head_layout": str(control_layout(arm, grid, k, self.seed, needed, source))}

    def _cfg(self, options: dict[str, Any]) -> argparse.Namespace:
        """The model's cfg, as fairseq-train would have it."""
        setting = self.setting
        values: dict[str, Any] = {
            "arch": "dsp_transformer", "task": "translation_dsp", "criterion": "label_smoothed_cross_entropy_dsp",
            "optimizer": "dsp_adam", "share_decoder_input_output_embed": True, "seed": self.seed, "max_update": setting.updates,
            "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
            "max_source_positions": setting.length, "max_target_positions": setting.length,
        }  # fmt: skip
        sizes = {"embed_dim": setting.width, "ffn_embed_dim": setting.width, "layers": setting.layers}
        sizes |= {"attention_heads": setting.heads, "learned_pos": True}
        values |= {f"{side}_{name}": size for side in _SIDES for name, size in sizes.items()}
        cfg = argparse.Namespace(**values | {k: v for k, v in options.items() if k not in OF_THE_TRAINING})
        method = METHODS.get(options.get("head_selection", ""))
        if method is not None and "cooldown_updates" in method.options and "cooldown_updates" not in options:
            cfg.cooldown_updates = round(_WINDOW * setting.updates)
        ARCH_CONFIG_REGISTRY[cfg.arch](cfg)
        return cfg

    def _dense_state(self) -> dict[str, Tensor]:
        """Weights of the seed's dense model, without marks of a layout; trained when they are first asked for."""
        if self._dense is None:
            model = self.build({"head_layout": str(Layout.full(self.setting.grid))})
            self.train(model, self.setting.dense_updates, self.setting.dense_lr, {})
            state = model.state_dict()
            self._dense = {name: value.clone() for name, value in state.items() if not name.endswith(HEADS.marks)}
        return self._dense

    def _scored(self, arm: Arm, k: int) -> Layout:
        """The k heads of the dense model to which a scorer gives most, above the arm's floor."""
        grid = self.setting.grid
        scores = self._scores(arm.name, dict(arm.options))
        return Layout.of_mask(grid, top_k_above_floors(scores, k, floors_of(grid, _floor(arm)) if k else ()))

    def _scores(self, scorer: str, options: dict[str, str]) -> Tensor:
        """Of the heads of the dense model, [H], on sentences that training does not see."""
        model = self.build({"head_layout": str(Layout.full(self.setting.grid))}, self._dense_state()).eval()
        generator = torch.Generator().manual_seed(_SCORING_SEED + self.seed)
        batches = [self.lookup.batch(self.setting.batch, generator) for _ in range(10)]
        subject = Subject.of(model, batches, partial(loss_of, model), partial(words_of, model), self.seed)
        return make_scorer(scorer, options).score(subject, torch.ones(self.setting.grid.total))


def _floor(arm: Arm) -> int | str | None:
    return parse_floor(dict(arm.options)[FLOOR])
