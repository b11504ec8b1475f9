"""What the units of a built model cost, in the measure of a budget. Called by `model`, `task` and `rewriting`."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Any

from fairseq_dsp.config import AUTO, PruningConfig, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.options.initial_layout import given_layout
from fairseq_dsp.options.kinds import chosen_of, settle_kinds
from fairseq_dsp.options.records import Options, TransformerOptions
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.chosen import Chosen, parse_kinds
from fairseq_dsp.units.costs import LATENCY, MACS, PARAMETERS, Costs, Sentence, operation_costs, parameter_costs
from fairseq_dsp.units.groups import group_of, has_neurons, part_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.prices import write_prices
from fairseq_dsp.units.request import BudgetRequest, parse_budget, parse_sentence

if TYPE_CHECKING:
    from fairseq_dsp.units.cost_file import CostFile, Sizes

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
    return operation_costs(grid, shapes, widths, sentence, bool(model.decoder.cross_self_attention))


def sizes_of(model: Any) -> Sizes:
    """Sizes of the model before anything was pruned: what its speed depends on."""
    heads = part_of(model.layout, [HEADS.name]).grid
    sizes = {stack.name: heads.of(stack.name) for stack in HEADS.stacks}
    sizes |= {stack: tuple(numbers) for stack, numbers in model.neurons.items()}
    words = tuple(len(getattr(model, side).embed_tokens.weight) for side in ("encoder", "decoder"))
    return {**sizes, "words": words, "parameters": (costs_of(model, PARAMETERS).dense,)}


def measured_costs(model: Any, file: CostFile, layout: Layout | None = None) -> Costs:
    """Costs of all units of the model's architecture in seconds a sentence, as they were measured.

    Args:
        model: a `DspTransformerModel`.
        layout: as of `costs_of`.

    Raises:
        Refusal: they were measured of a model of other sizes.
    """
    grid = (layout or model.layout).grid
    if reasons := file.objections_to_sizes(sizes_of(model)):
        raise Refusal(*reasons)
    return file.costs(grid, group_of(grid, model.neurons, "--ffn-group") if has_neurons(grid) else 1)


def prices_of(model: Any, config: PruningConfig, layout: Layout) -> str:
    """What `--budget` comes to in a fresh model that has all of its units: see `units/prices`.

    Args:
        layout: units that it will have before any are chosen, of those of its architecture.

    Raises:
        Refusal: the model costs more without any unit that is chosen among, the budget has more units or names other kinds, or the
            sentence that operations are counted of is not known.
    """
    request, chosen = parse_budget(str(config.budget)), chosen_of(config, layout)
    if request.measure == COUNT:
        texts = []
        for kinds, amount in _amounts(request, chosen.kinds):
            own = Chosen(layout, kinds).grid
            each = Costs.of_units(COUNT, own, dict.fromkeys(own.sites, 1), 0)
            texts.append(write_prices(each, amount.count(Chosen(Layout.full(layout.grid), kinds).grid.total)))
        return ";".join(texts)
    if request.measure == MACS and config.sentence is None:
        raise Refusal(
            "`--sentence` must be given for `--budget macs=`, for there is no validation set to take the lengths from."
        )
    sentence = None if config.sentence is None else parse_sentence(config.sentence)
    if request.measure == LATENCY:
        costs = measured_costs(model, _read(str(config.costs))[1], Layout.full(layout.grid))
    else:
        costs = costs_of(model, request.measure, sentence, Layout.full(layout.grid))
    of_chosen = chosen.costs(costs).straight()
    return write_prices(of_chosen, request.limit(of_chosen, costs.dense))


def priced(model: Any, args: Options, config: PruningConfig) -> PruningConfig:
    """The options with what their budget comes to, which is written into the cfg of a fresh model.

    Raises:
        Refusal: as of `prices_of`, or the layout does not fit the model.
    """
    if config.budget is None or config.prices is not None:
        return config
    layout = given_layout(model.layout.grid, model.neurons, config, resolve_layout)
    set_option(args, "prices", prices_of(model, config, layout))
    return PruningConfig.from_model_cfg(args)


def settle_budget(cfg: Options, data: str, source: str | None, target: str | None) -> None:
    """Writes into a model's options what a training's `--prune` and `--budget` stand for, before it is built: neurons of a unit; K of a budget in
    heads, or `auto`; the sentence of one in operations; the costs file of one in time, with a mark of its content.

    Args:
        data: the data folder, and its languages.

    Raises:
        Refusal: `--prune` does not fit; the budget cannot be read, names other kinds, or has more units than there are.
    """
    settle_kinds(cfg)
    config = PruningConfig.from_model_cfg(cfg)
    if config.budget is None or config.prices is not None:
        return
    if config.budget == AUTO and config.unpruned_heads is None:
        set_option(cfg, "unpruned_heads", AUTO)
        set_option(cfg, "budget", None)
        return
    request = parse_budget(config.budget)
    if request.measure == COUNT and config.prune is not None:
        _amounts(request, parse_kinds(config.prune, "--prune"))
    heads_alone = config.prune is None and config.ffn_group is None and config.head_layout is None
    grid = TransformerOptions.of(cfg).grid if heads_alone else None
    if request.measure == COUNT and grid is not None and config.unpruned_heads is None:
        ((_, amount),) = _amounts(request, (HEADS.name,))
        set_option(cfg, "unpruned_heads", amount.count(grid.total))
        set_option(cfg, "budget", None)
    if request.measure == LATENCY and config.costs is not None:
        set_option(cfg, "costs", _read(config.costs)[0])
    if request.measure == MACS and config.sentence is None:
        counted = sentence_of_validation(data, source, target)
        set_option(cfg, "sentence", f"{counted.source},{counted.target},{counted.beam}")


def _read(given: str) -> tuple[str, CostFile]:
    """A costs file, as an option names it and as a checkpoint's options do, with a mark of what it says behind the name: `costs.json#1f0a9b3c`.

    Raises:
        Refusal: it cannot be read, or says something else than it did.
    """
    from fairseq_dsp.units.cost_file import read_costs  # what a plug-in imports, it imports for every fairseq command

    found = re.fullmatch(r"(.*)#([0-9a-f]{8})", given)
    path = given if found is None or os.path.exists(given) else found[1]
    file = read_costs(path)
    marked = f"{path}#{hashlib.blake2b(file.text().encode(), digest_size=4).hexdigest()}"
    if found is not None and path == found[1] and marked != given:
        raise Refusal(f"`--costs` must be what it was, {given}, but is {marked}.")
    return marked, file


def _amounts(request: BudgetRequest, kinds: tuple[str, ...]) -> list[tuple[tuple[str, ...], BudgetRequest]]:
    """Kinds that share a budget in units, with what it says of them; all kinds together where it names none.

    Raises:
        Refusal: it names some, and not those that are chosen.
    """
    named = dict(request.by_kind)
    if not named:
        return [(kinds, request)]
    if named.keys() != set(kinds):
        raise Refusal(
            f"`--budget` must name the kinds that are chosen (`--prune`: {', '.join(kinds)}), but is {request.text}."
        )
    return [((kind,), BudgetRequest(request.text, COUNT, named[kind])) for kind in kinds]


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
