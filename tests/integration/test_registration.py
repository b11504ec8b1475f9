"""Every documented name is registered with fairseq."""

from __future__ import annotations

import pytest
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from fairseq_dsp.methods import METHODS
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.plugin.optimizer import DspAdam
from fairseq_dsp.plugin.task import TranslationDspTask

ARCHITECTURES = [
    "dsp_transformer",
    "dsp_transformer_iwslt_de_en",
    "dsp_transformer_wmt_en_de",
    "dsp_transformer_wmt_en_de_big",
    "dsp_transformer_vaswani_wmt_en_de_big",
    "dsp_transformer_wmt_en_de_big_t2t",
    "dsp_transformer_vaswani_wmt_en_fr_big",
    "dsp_transformer_tiny",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_documented_architecture_is_ours_and_has_the_size_of_fairseqs(name: str):
    from argparse import Namespace

    ours, stock = Namespace(), Namespace()
    ARCH_CONFIG_REGISTRY[name](ours)
    ARCH_CONFIG_REGISTRY[name.removeprefix("dsp_")](stock)
    assert ARCH_MODEL_REGISTRY[name] is DspTransformerModel
    assert vars(ours) == vars(stock)


def test_task_criterion_optimizer_and_methods_are_registered_under_their_documented_names():
    assert TASK_REGISTRY["translation_dsp"] is TranslationDspTask
    assert CRITERION_REGISTRY["label_smoothed_cross_entropy_dsp"] is LabelSmoothedCrossEntropyDspCriterion
    assert OPTIMIZER_REGISTRY["dsp_adam"] is DspAdam
    assert {"dsp", "ste", "fixed"} <= set(METHODS)
