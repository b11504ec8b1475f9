"""What the units of a built model cost, in the measure of a budget. Called by `rewriting`."""

from __future__ import annotations

from typing import Any

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import MACS, PARAMETERS, Costs, Sentence, operation_costs, parameter_costs
from fairseq_dsp.units.groups import group_of, has_neurons
from fairseq_dsp.units.layout import Layout

# fairseq-generate's hypotheses a sentence.
BEAM = 5


def costs_of(model: Any, measure: str, sentence: Sentence | None = None, layout: Layout | None = None) -> Costs:
    """Costs of all units of the model's architecture.

    Args:
        model: a `DspTransformerModel`.
        measure: `count`, `parameters` or `macs`.
        sentence: that operations are counted of.
        layout: the units that it has, neurons among them or not; as it is gated or was pruned if None.

    Raises:
        Refusal: the model has parts whose operations are not known.
    """
    layout = layout or model.layout
    grid = layout.grid
    if measure == COUNT:
        return Costs.of_units(COUNT, grid, dict.fromkeys(grid.sites, 1), 0)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
    widths = {site: attention.head_dim for site, attention in attentions(model, grid)}
    if has_neurons(grid):
        group = group_of(grid, model.neurons, "--ffn-group")
        widths |= {site: group for site in grid.sites if site not in widths}
    if measure == PARAMETERS:
        return parameter_costs(grid, shapes, widths, model.weight_count(), layout)
    assert measure == MACS
    assert sentence is not None
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise Refusal(
            "`--budget macs=` must be for a model with one output projection, but this one has `--adaptive-softmax-cutoff`."
        )
    return operation_costs(grid, shapes, widths, sentence)


def sentence_of_validation(data: str | None, source: str | None, target: str | None) -> Sentence:
    """The mean lengths of a validation set, rounded, and fairseq's beam.

    Args:
        data: folder of fairseq-preprocess, as the task's options name it.
        source, target: languages, where nothing else tells them.

    Raises:
        Refusal: there is no such set; the sentence names the option that says the lengths.
    """
    try:
        if not data:
            raise Refusal("none is named")
        sizes = DataFolder(data, source, target).sizes("valid")
        if not len(sizes):
            raise Refusal("it has no sentence")
    except Refusal as refusal:
        raise Refusal(
            "`--sentence` must be given for `--budget macs=`: the checkpoint's data folder has no validation set to take the lengths "
            f"from ({data}: {refusal.reasons[0].rstrip('.')})."
        ) from refusal
    lengths = [max(round(float(length)), 1) for length in sizes.mean(axis=0)]
    return Sentence(*lengths, BEAM)
