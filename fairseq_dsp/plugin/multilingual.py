"""`translation_multi_simple_epoch_dsp`: fairseq's task of several language pairs with a head budget, validated pair by pair.

fairseq validates all pairs as one and knows no BLEU here. Batches of validation hold one pair each, none loses a sentence, and
the log has loss and BLEU of each pair, their mean and the worst (`pair_figures`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from dataclasses import fields, make_dataclass
from typing import Any
from unittest import mock

from fairseq.data import encoders
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_dsp.config import flag, set_option
from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.options.languages import MULTILINGUAL, MULTILINGUAL_BUDGET, languages_of
from fairseq_dsp.options.pair_folders import objections_to_dictionaries, refuse_no_sentences
from fairseq_dsp.options.records import values_of
from fairseq_dsp.plugin.pair_figures import PAIR, PairFigures, PairsDataset, counts_of
from fairseq_dsp.plugin.task import BudgetTask, TranslationDspConfig

logger = logging.getLogger(__name__)

_FOLDER = "the data folder"
_NO_BLEU = frozenset(field.name for field in fields(TranslationConfig) if not field.name.startswith("eval_"))


@register_task(MULTILINGUAL_BUDGET)
class TranslationMultiSimpleEpochDspTask(BudgetTask, TranslationMultiSimpleEpochTask):
    """Translation between several language pairs under a head budget."""

    budget_name, stock_name = MULTILINGUAL_BUDGET, MULTILINGUAL

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """fairseq's options, the budget, and those of BLEU, which this task of fairseq lacks."""
        TranslationMultiSimpleEpochTask.add_args(parser)
        ours = [
            (field.name, field.type, field)
            for field in fields(TranslationDspConfig)
            if field.name not in _NO_BLEU and not str(field.default).startswith("${")
        ]
        gen_parser_from_dataclass(parser, make_dataclass("Options", ours, bases=(FairseqDataclass,))())

    @classmethod
    def setup_task(cls, args: argparse.Namespace, **kwargs: Any) -> TranslationMultiSimpleEpochDspTask:
        """fairseq's, which leaves what is wrong with languages and dictionaries to a traceback."""
        with exit_on_refusal():
            if args.langs and args.lang_dict:
                raise Refusal(
                    f"`--langs` and `--lang-dict` must not be given together, but are {','.join(args.langs)} and {args.lang_dict}."
                )
            languages = languages_of(args)
            assert languages is not None
            asked = _asked_pair(args)
            pairs = languages.pairs if asked is None else (asked,)
            if "://" not in args.data and (reasons := objections_to_dictionaries(languages, pairs, args, _FOLDER)):
                raise Refusal(*reasons)
            # the checkpoint says them, whatever becomes of a file
            args.langs, args.lang_dict = list(languages.names), None
        # fairseq evaluates text, and takes a checkpoint's True for False
        for side in ("left_pad_source", "left_pad_target"):
            setattr(args, side, str(getattr(args, side)))
        return super().setup_task(args, **kwargs)

    def settle_languages(self, cfg: Any) -> list[str]:
        """Writes the order of the languages into the model's options; looks for the data of every pair."""
        set_option(cfg, "langs", self.langs)
        set_option(cfg, "lang_dict", None)
        reasons: list[str] = []
        languages = languages_of(self.args)
        if len(set(self.target_langs)) > 1 and not (languages is not None and languages.tells_target):
            logger.warning(
                "`--encoder-langtok tgt` or `--decoder-langtok` should be given for several target languages (%s): nothing else tells the "
                "model which one is meant.",
                ", ".join(sorted(set(self.target_langs))),
            )
        if self.given.enable_lang_ids:
            reasons.append(
                f"`--enable-lang-ids` must not be given for `--task {self.budget_name}`: a transformer takes none."
            )
        if self.given.max_valid_steps is not None and not self.given.disable_validation:
            reasons.append(
                f"`--max-valid-steps` must not be given for `--task {self.budget_name}`, which validates one language pair after the other: "
                f"mean and worst would be of the first pairs alone, but is {self.given.max_valid_steps}."
            )
        subsets = [self.given.train_subset]
        if not self.given.disable_validation:
            subsets += str(self.given.valid_subset).split(",")
        for pair, subset in itertools.product(self.lang_pairs, subsets):
            with noted(reasons):
                if "://" not in self.given.data:
                    refuse_no_sentences(self.given.data, pair, subset, _FOLDER)
        return list(dict.fromkeys(reasons))

    def metrics(self) -> dict[str, str]:
        return self._figures.known()

    @property
    def _figures(self) -> PairFigures:
        return PairFigures(self.lang_pairs, bool(self.given.eval_bleu))

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model, and what translates its validation sets."""
        model = super().build_model(cfg, from_checkpoint)
        if self.given.eval_bleu and self.training:
            self._judge = _PairJudge(self)
            options = argparse.Namespace(**json.loads(self.given.eval_bleu_args or "{}"))
            self._generator = FairseqTask.build_generator(self, [model], options)
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As in fairseq; a validation set keeps its pairs apart."""
        if not self.training or split == self.given.train_subset:
            super().load_dataset(split, epoch, combine, **kwargs)
            self._begin_pass(split, epoch, combine, **kwargs)
            return
        found, _ = self.data_manager.load_split_datasets(split, self.training, epoch, combine)
        self.datasets[split] = PairsDataset({key.partition(":")[2]: dataset for key, dataset in found})

    def _begin_pass(self, split: str, epoch: int, combine: bool, **kwargs: Any) -> None:
        """Loads a training set as it was in the first epoch of the pass over it, of which `--virtual-epoch-size` makes several epochs.

        fairseq draws the order of the sentences there. A training that is resumed later would draw another one, and read some sentences
        of the pass twice and others never.
        """
        passed = (epoch - 1) % getattr(self.datasets[split], "num_virtual_epochs", 1)
        if passed and not self.has_sharded_data(split):
            del self.datasets[split]  # which fairseq would stumble over
            super().load_dataset(split, epoch - passed, combine, **kwargs)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `BudgetTask`. With `--sampling-method RoundRobin` fairseq would go on with the first epoch's batches."""
        if self._is_training_set(dataset):
            self.dataset_to_epoch_iter.pop(dataset, None)
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def validate(self, sample: Any, model: Any, criterion: Any) -> Any:
        """As in fairseq, and with BLEU's counts."""
        loss, sample_size, logged = super().validate(sample, model, criterion)
        if PAIR in sample and self.given.eval_bleu:
            logged.update(self._judge.counts(self._generator, sample, model, self.lang_pairs[sample[PAIR]]))
        return loss, sample_size, logged

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """As in `BudgetTask`, and notes what is the pair's."""
        loss, sample_size, logged = super().valid_step(sample, model, criterion)
        if PAIR in sample:
            logged.update(self._figures.tagged(self.lang_pairs[sample[PAIR]], logged))
        return loss, sample_size, logged

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Logs fairseq's figures, what became of the heads, and the figures of the pairs."""
        super().reduce_metrics(logging_outputs, criterion)
        self._figures.reduce(logging_outputs)


class _PairJudge(TranslationTask):
    """fairseq's BLEU of a batch of one pair, whose tokens of languages are no words.

    Args:
        owner: the task.
    """

    def __init__(self, owner: TranslationMultiSimpleEpochDspTask) -> None:
        values = values_of(TranslationConfig, owner.args)
        options = TranslationConfig(**{name: value for name, value in values.items() if name.startswith("eval_")})
        super().__init__(options, owner.source_dictionary, owner.target_dictionary)
        self.owner = owner
        self.token: int | None = None
        detokenizer = argparse.Namespace(tokenizer=options.eval_bleu_detok, **json.loads(options.eval_bleu_detok_args))
        self.tokenizer = encoders.build_tokenizer(detokenizer)

    def counts(self, generator: Any, sample: dict[str, Any], model: Any, pair: str) -> dict[str, Any]:
        """Counts of n-grams and words of the batch, by the names that fairseq gives them."""
        options, language = self.owner.args, pair.split("-")[1]
        spec = options.langtoks["main"][1]
        token = self.owner.data_manager.get_decoder_langtok(language, spec) if spec else None
        self.token = None if options.lang_tok_replacing_bos_eos else token
        words = sample["target"]
        if self.token is not None:
            words = words.masked_fill(words == self.token, self.tgt_dict.pad())
        with mock.patch.object(options, "target_lang", language):  # from which fairseq knows the token to begin with
            bleu = self._inference_with_bleu(generator, {**sample, "target": words}, model)
        return counts_of(bleu)

    def inference_step(self, generator: Any, models: Any, sample: Any, **options: Any) -> Any:
        found = self.owner.inference_step(generator, models, sample, **options)
        if self.token is not None:
            for hypotheses in found:
                for hypothesis in hypotheses:
                    hypothesis["tokens"] = hypothesis["tokens"][hypothesis["tokens"] != self.token]
        return found


def _asked_pair(args: argparse.Namespace) -> str | None:
    """The pair that is translated, where fairseq generates; None where all are trained.

    Raises:
        Refusal: one of its languages is not given.
    """
    given = {name: getattr(args, name) for name in ("source_lang", "target_lang")}
    if not any(given.values()):
        return None
    if not all(given.values()):
        said = ", ".join(f"{flag(name)} {value or 'not given'}" for name, value in given.items())
        raise Refusal(f"`--source-lang` and `--target-lang` must be given together, but are {said}.")
    return "{source_lang}-{target_lang}".format(**given)
