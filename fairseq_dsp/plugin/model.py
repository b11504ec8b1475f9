"""The `dsp_transformer` architectures: fairseq's transformers of the same suffix, with heads that can be gated and gone.

fairseq builds the model with all of its options; afterwards the attentions are replaced, shrunk to the layout in the cfg
and gated if a method asks for it. Called by fairseq (training, generation, hub) and by `plugin/building`.

Registered without a dataclass: fairseq's command line and hydra then both hand over a flat cfg, and ignore no option.
"""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY, register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_dsp.config import PruningConfig, add_arguments, flag, set_option
from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.guards.versions import (
    disable_fused_encoder,
    drop_fused_encoder_copies,
    settle_device_marks,
    settle_device_marks_of,
)
from fairseq_dsp.methods import method_class
from fairseq_dsp.modules.gates import IMPORTANCE_GROUP, STATE_PREFIX, HeadGates
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.modules.spectral import fold, normalise
from fairseq_dsp.modules.surgery import (
    attentions,
    install_gates,
    is_marked,
    make_prunable,
    neurons_of,
    remove_gates,
    shrink_model,
)
from fairseq_dsp.options.costing import priced
from fairseq_dsp.options.fitting import Receiver, fit_state, names_of
from fairseq_dsp.options.initial_layout import gates_of, initial_layout
from fairseq_dsp.options.kinds import settle_kinds
from fairseq_dsp.options.languages import objections_to_use
from fairseq_dsp.options.objections import budget_of_a_range, objections, objections_to_unknown_options
from fairseq_dsp.options.records import OptimizerOptions, TrainingOptions
from fairseq_dsp.options.starting import objections_to_start
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.options.widths import objections_to_neurons
from fairseq_dsp.plugin.decoder import NO_LAYER, DspTransformerDecoder
from fairseq_dsp.units.groups import group_of, has_neurons
from fairseq_dsp.units.layout import Layout

ARCHITECTURES = (
    "transformer",
    "transformer_tiny",
    "transformer_iwslt_de_en",
    "transformer_wmt_en_de",
    "transformer_wmt_en_de_big",
    "transformer_wmt_en_de_big_t2t",
    "transformer_vaswani_wmt_en_de_big",
    "transformer_vaswani_wmt_en_fr_big",
)


@register_model("dsp_transformer")
class DspTransformerModel(TransformerModel):
    """A transformer that has the heads of its layout, and gates on them while a method is choosing.

    Attributes:
        layout: units that the model has, in original ids.
        neurons: how many neurons its feed-forward networks had when they were whole, layer by layer, by stack.
        head_gates: importance variables and gates; None where no method is choosing.
        adopts_dense_state: whether a state without importance variables starts with fresh ones. Set by the task when it trains.
        unchecked: the options that it was built with, as long as nobody has looked whether they can train it.
    """

    def __init__(self, args: Any, encoder: Any, decoder: Any) -> None:
        super().__init__(args, encoder, decoder)
        disable_fused_encoder(self.encoder)
        settle_device_marks_of(self)
        self.layout = Layout.full(make_prunable(self))
        self.neurons = neurons_of(self)
        self.head_gates: HeadGates | None = None
        self.adopts_dense_state = False
        self.unchecked: argparse.Namespace | DictConfig | None = None
        for index in range(len(self.decoder.layers)):
            self.decoder.layers[
                index
            ].need_attn = False  # in validation too, where fairseq computes weights of all layers and uses one's

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Adds fairseq's options of a transformer and ours."""
        super().add_args(parser)
        add_arguments(parser)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: Any) -> DspTransformerDecoder:
        decoder = DspTransformerDecoder(args, tgt_dict, embed_tokens, no_encoder_attn=args.no_cross_attention)
        decoder.dropout_module.module_name = "TransformerDecoder"  # as --retain-dropout-modules knows it
        return decoder

    @classmethod
    def build_model(cls, args: argparse.Namespace | DictConfig, task: Any) -> DspTransformerModel:
        """Builds the model that the cfg describes; writes a layout that was drawn or looked up into the cfg.

        Raises:
            SystemExit: options that cannot be honoured, each named on stderr.
        """
        with exit_on_refusal():
            settle_kinds(args)
            if reasons := objections(args) + objections_to_use(args, getattr(task, "args", None)):
                raise Refusal(*reasons)
            model = super().build_model(args, task)
            model.unchecked = args
            config = priced(model, args, PruningConfig.from_model_cfg(args))
            model._take_heads(args, config)
            if method_class(config).learned:
                install_gates(model, model.layout.surviving, gates_of(config, model.layout))
                model.decoder.alignment_layer = NO_LAYER  # our criterion and BLEU read no attention weights
            else:
                # Nothing of this model is grouped, but the optimizer can tell by it that the model is one of ours.
                for _, attention in attentions(model, model.layout.grid):
                    attention.out_proj.bias.param_group = "default"
            normalise(model, config.spectral_norm)  # of the maps that gates have put into their places
            if config.pipelined:
                for parameter in model.parameters():
                    parameter.requires_grad_(getattr(parameter, "param_group", None) == IMPORTANCE_GROUP)
            return model

    def _take_heads(self, args: argparse.Namespace | DictConfig, config: PruningConfig) -> None:
        """Shrinks the fresh model to the layout that the options give or draw."""
        layout = initial_layout(self.layout.grid, self.neurons, config, resolve_layout)
        if has_neurons(layout.grid):
            if reasons := objections_to_neurons(args):  # where the layout was looked up
                raise Refusal(*reasons)
            set_option(args, "ffn_group", group_of(layout.grid, self.neurons, "--head-layout"))
        if config.head_layout is not None or not method_class(config).learned:
            shrink_model(self, layout)
            set_option(args, "head_layout", str(layout))
            if not layout.by_type()["cross"][0]:
                # Nothing reads the encoder: its gradient never comes, and DistributedDataParallel would wait for it.
                read = {id(parameter) for parameter in self.decoder.parameters()}
                for parameter in self.encoder.parameters():
                    parameter.requires_grad_(parameter.requires_grad and id(parameter) in read)
        self.layout = layout
        self._find_alignment_layer()

    def weights(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters by name, shared ones once, without importance variables."""
        return [(name, weight) for name, weight in self.named_parameters() if not name.startswith(STATE_PREFIX)]

    def weight_count(self) -> int:
        """Number of parameters, importance variables not counted."""
        return sum(weight.numel() for _, weight in self.weights())

    def train(self, mode: bool = True) -> DspTransformerModel:
        """As in torch; before a training that another task than ours has started, looks whether its options can be honoured.

        Raises:
            SystemExit: they cannot.
        """
        options = self.unchecked
        if mode and options is not None:
            self.unchecked = None
            with exit_on_refusal():
                reasons = objections_to_unknown_options(options)
                training = TrainingOptions.of(options)
                if training.save_dir is not None:  # fairseq-train's; hydra's are the model's alone
                    reasons += objections_to_start(training, options)
                if reasons:
                    raise Refusal(*reasons)
        return super().train(mode)

    def deployed_layout(self, k: int | None = None) -> Layout:
        """The heads that evaluation and rewriting keep, in original ids.

        Args:
            k: how many, of a model that was trained for a range of budgets.

        Raises:
            Refusal: such a model is not told how many.
        """
        if isinstance(self.head_gates, NestedGates):
            if k is None:
                raise Refusal(budget_of_a_range(self.head_gates.nested.low, self.head_gates.nested.high))
            with self.head_gates.at(k):
                return self.head_gates.layout()
        return self.layout if self.head_gates is None else self.head_gates.layout()

    def bake(self, k: int | None = None) -> None:
        """Turns the gated model, in place and for good, into the small one that computes the same; `k` as in `deployed_layout`."""
        fold(self)
        if self.head_gates is None:
            return
        layout = self.deployed_layout(k)
        remove_gates(self, self.layout.grid)
        shrink_model(self, layout, current=self.layout)
        self.layout = layout
        self._find_alignment_layer()

    def prepare_for_inference_(self, cfg: DictConfig) -> None:
        """fairseq calls this in generate, interactive and hub: deploys exactly the chosen heads."""
        self.unchecked = None
        with exit_on_refusal():
            self.bake()
            wanted = [name for name in ("print_alignment", "replace_unk") if getattr(cfg.generation, name, None)]
            if not wanted:
                self.decoder.alignment_layer = NO_LAYER  # spares computing weights that nobody asked for
            if wanted and not any(self.layout.by_type()["cross"][:1]):
                flags = " and ".join(map(flag, wanted))
                raise Refusal(
                    f"{flags} must have a cross-attention head to align with, but this model keeps {self.layout}."
                )
        super().prepare_for_inference_(cfg)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """As in fairseq; leaves nothing that fairseq 0.12.2 keeps twice or never writes to."""
        drop_fused_encoder_copies(state_dict)
        super().upgrade_state_dict_named(state_dict, name)
        settle_device_marks(state_dict)

    def load_state_dict(
        self,
        state_dict: dict[str, Tensor],
        strict: bool = True,
        model_cfg: Any = None,
        args: argparse.Namespace | None = None,
    ) -> Any:
        """As in fairseq, for a state of the same heads, or a dense one that is to be gated or shrunk.

        Raises:
            SystemExit: the state is of another model, or has other heads; the sentence says which option to change.
        """
        with exit_on_refusal():
            try:
                return super().load_state_dict(self._fitting(state_dict), strict, model_cfg, args)
            except (KeyError, RuntimeError) as error:  # names or shapes that no option of ours explains
                reason = " ".join(str(error).split())[:400]
                raise Refusal(f"the checkpoint's weights must fit the model's options, but do not: {reason}") from error

    def adopt_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Loads strictly by making the state's tensors the parameters, in their precision and without a copy.

        Raises:
            Refusal: the state has other heads than the model.
            RuntimeError: names or shapes differ.
        """
        self.unchecked = None
        shared = names_of(dict(self.named_parameters(remove_duplicate=False)))
        attached = {name: vars(parameter) for name, parameter in self.named_parameters(remove_duplicate=False)}
        nn.Module.load_state_dict(self, self._fitting(state_dict), strict=True, assign=True)
        for name, attributes in attached.items():  # by which the optimizer tells importance
            vars(self.get_parameter(name)).update(attributes)
        for first, *others in shared:
            for name in others:  # embeddings that are one parameter stay one
                owner, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(owner), attribute, self.get_parameter(first))

    def _fitting(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state, changed in place where it has names of an earlier fairseq, as strict loading wants it; see `fit_state`."""
        self.upgrade_state_dict(state)
        receiver = Receiver(
            parameters=dict(self.named_parameters(remove_duplicate=False)),
            layout=self.layout,
            neurons=self.neurons,
            is_marked=is_marked(self, self.layout.grid),
            gates=self.head_gates,
            adopts_dense_state=self.adopts_dense_state,
        )
        return fit_state(receiver, state)

    def _find_alignment_layer(self) -> None:
        able = [site.layer for site in self.layout.grid.sites if site.stack == "cross" and self.layout.units(site)]
        self.decoder.alignment_layer = able[-1] if able else self.decoder.num_layers - 1


def unwrap(model: Any) -> Any:
    """The model itself, where fairseq has wrapped it for several processes."""
    while not isinstance(model, DspTransformerModel) and hasattr(model, "module"):
        model = model.module
    return model


def _register(stock: str) -> None:
    @register_model_architecture("dsp_transformer", f"dsp_{stock}")
    def architecture(args: argparse.Namespace | DictConfig) -> None:
        ARCH_CONFIG_REGISTRY[stock](args)
        # fairseq-train takes --bf16 for a TPU, and would flatten all parameters into one under --fp16, importance too
        options = OptimizerOptions.of(args)
        if options.bf16 and options.tpu:
            set_option(args, "tpu", False)
        if options.fp16 and options.optimizer == "dsp_adam":
            set_option(args, "fp16_no_flatten_grads", True)


for _stock in ARCHITECTURES:
    _register(_stock)
