"""`--prune`: which kinds of units a training chooses among, and in what groups neurons are units then. Called by `task` and `model`."""

from __future__ import annotations

from fairseq_dsp.config import AUTO, PruningConfig, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import method_class
from fairseq_dsp.methods.dsp import PROJECTION, DifferentiableSubset
from fairseq_dsp.methods.stratified import Stratified
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.options.records import Options, TransformerOptions, completed, given_of_ours
from fairseq_dsp.units.chosen import Chosen, default_group, default_kinds, parse_kinds
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.units.sublayers import SUBLAYERS

_OPTION = "--prune"

# Units up to which a successive softmax is taken, a step for each, where these are not heads alone.
_MOST_STEPS = 200


def chosen_of(config: PruningConfig, layout: Layout) -> Chosen:
    """What a training chooses among.

    Args:
        layout: units that the model has.

    Raises:
        Refusal: neurons are chosen, but are no units of it.
    """
    if method_class(config) is Stratified:
        return Chosen(layout, (HEADS.name,))
    if config.prune is None:
        return Chosen(layout, default_kinds(layout.grid))
    kinds = parse_kinds(config.prune, _OPTION)
    if kinds != (HEADS.name,) and not has_neurons(layout.grid):
        raise Refusal(
            f"`--ffn-group` must be given for `{_OPTION} {config.prune}`, for the layout says nothing of neurons: {layout}."
        )
    return Chosen(layout, kinds)


def settle_kinds(cfg: Options) -> None:
    """Writes into a model's options what `--prune` stands for: groups of neurons. Kinds that follow from these are not said twice.

    Raises:
        Refusal: what it names are no kinds, or other options do not fit them.
    """
    config = PruningConfig.from_model_cfg(cfg)
    if config.prune is None:
        return
    kinds, reasons = parse_kinds(config.prune, _OPTION), []
    heads_alone = kinds == (HEADS.name,)
    if heads_alone and config.ffn_group is not None and config.head_layout is None:
        reasons.append(
            f"`--ffn-group` must come with `--prune ffn`, but is {config.ffn_group} with `--prune {config.prune}`."
        )
    if not heads_alone and config.unpruned_heads not in (None, AUTO):
        reasons.append(_not_heads_alone(config.unpruned_heads, f"`--prune {config.prune}`"))
    if not heads_alone and method_class(config) is Stratified:
        reasons.append(
            f"`--prune` must be {HEADS.name} for `--head-selection {Stratified.name}`, but is {config.prune}."
        )
    if reasons:
        raise Refusal(*reasons)
    if not heads_alone and config.ffn_group is None and config.head_layout is None:
        set_option(cfg, "ffn_group", _group_of_options(cfg, kinds))
    known = "ffn_group" in given_of_ours(cfg) or heads_alone
    if config.head_layout is None and known and SUBLAYERS.name not in kinds and (heads_alone or HEADS.name in kinds):
        set_option(cfg, "prune", None)


def refuse_heads_of_other_kinds(chosen: Chosen, config: PruningConfig) -> None:
    """Asked before anything is drawn or learned: a checkpoint that was trained so is still read.

    Raises:
        Refusal: a number of heads is given where neurons are chosen too, because a layout names them, or `--ffn-group` does.
    """
    if chosen.kinds != (HEADS.name,) and config.unpruned_heads not in (None, AUTO):
        named = (
            "a `--head-layout` that names neurons"
            if config.head_layout is not None
            else f"`--ffn-group {config.ffn_group}`"
        )
        raise Refusal(_not_heads_alone(config.unpruned_heads, named))


def _not_heads_alone(number: str | int | None, beside: str) -> str:
    return f"`--unpruned-heads` must be for `--prune {HEADS.name}`, but is {number} with {beside}: use `--budget`."


def objections_to_other_kinds(before: PruningConfig, now: PruningConfig, path: str) -> list[str]:
    """Sentences on a checkpoint whose importance is of other units than those that are chosen now, be they as many; empty if it may be taken over.

    Args:
        before: of a checkpoint that chooses.
        path: of its file.
    """
    if before.head_layout is not None or now.head_layout is not None:  # which say in what groups, and may be a file
        return []
    one, other = (_kinds_in_words(config) for config in (before, now))
    if one == other:
        return []
    return [
        f"`{_OPTION}` must be {one}, which {path} chose among, for its importance is taken over, but is {other}: rewrite the checkpoint "
        "first (`fairseq-dsp-prune`)."
    ]


def _kinds_in_words(config: PruningConfig) -> str:
    both = f"{HEADS.name},{NEURONS.name}"
    kinds = ",".join(parse_kinds(config.prune or (HEADS.name if config.ffn_group is None else both), _OPTION))
    return kinds if config.ffn_group is None else f"{kinds}, in groups of {config.ffn_group}"


def refuse_unfit_choice(gates: HeadGates | None, config: PruningConfig) -> None:
    """Asked when training starts: a checkpoint that was trained so is still read.

    Raises:
        Refusal: the relaxation takes a step for each unit, where units are many (heads alone were always chosen so), or cost differently,
            for it counts them.
    """
    if gates is None or not isinstance(gates.method, DifferentiableSubset) or gates.method.relaxation == PROJECTION:
        return
    for budget in () if gates.budget is None else gates.budget.parts or (gates.budget,):
        if not budget.is_even:
            raise Refusal(
                f"`--relaxation` must be {PROJECTION} for `--budget {config.budget}`, whose units cost differently, but is {gates.method.relaxation}, "
                "which `--recipe paper`, or temperatures without a relaxation, stand for."
            )
        if budget.count > _MOST_STEPS and gates.chosen.kinds != (HEADS.name,):
            raise Refusal(
                f"`--relaxation` must be {PROJECTION} for more than {_MOST_STEPS} units where others than heads are chosen, but is "
                f"{gates.method.relaxation} for {budget.count}."
            )


def _group_of_options(cfg: Options, kinds: tuple[str, ...]) -> int:
    given = completed(cfg)
    options = TransformerOptions.of(given)
    sizes, neurons = set(), set()
    for name, side in (("encoder", options.encoder), ("decoder", options.decoder)):
        width = getattr(given, f"{name}_embed_dim", None)
        if not side.heads or not side.neurons or not width:
            raise Refusal("`--ffn-group` must be given, for the model's options do not say how large heads are.")
        sizes.add(int(width) // side.heads)
        neurons.add(side.neurons)
    return default_group(sizes, neurons, kinds)
