"""The specification of a model for CTranslate2: its parts by CTranslate2's names, heads packed. Called by `ctranslate2`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.export.packing import Affine, PackedAttention, pack, pad_neurons
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.units.layout import Site

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerSpec

    from fairseq_dsp.options.languages import Languages
    from fairseq_dsp.options.records import TransformerOptions
    from fairseq_dsp.plugin.model import DspTransformerModel

# fairseq's activation functions that CTranslate2 has, with its names.
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_accurate": "GELUTanh", "gelu_fast": "GELUTanh", "tanh": "Tanh"}


_PAD = 1  # its number in fairseq's dictionaries


@dataclass(frozen=True)
class Vocabularies:
    """Words of both sides by their number, special symbols included."""

    source: list[str]
    target: list[str]

    @property
    def padding(self) -> str:
        """The name that padding gets: what CTranslate2's own converter calls it, or where a word is called so, one that is free."""
        words = {*self.source[:_PAD], *self.source[_PAD + 1 :], *self.target[:_PAD], *self.target[_PAD + 1 :]}
        names = itertools.chain(["<blank>"], (f"<blank>_{number}" for number in itertools.count(1)))
        return next(name for name in names if name not in words)

    def tokens(self) -> tuple[list[str], list[str]]:
        """Both sides by the names that CTranslate2 gets. Words go in as text: no two of a side may be called the same."""
        source, target = ([*words[:_PAD], self.padding, *words[_PAD + 1 :]] for words in (self.source, self.target))
        return source, target


def import_ctranslate2() -> Any:
    """The package.

    Raises:
        Refusal: it is not installed.
    """
    try:
        import ctranslate2
    except ImportError:
        raise Refusal(
            "`--format ctranslate2` needs CTranslate2, which is not installed: pip install 'fairseq_dsp[ctranslate2]'."
        ) from None
    return ctranslate2


def build_spec(
    model: DspTransformerModel, options: TransformerOptions, words: Vocabularies, languages: Languages | None = None
) -> TransformerSpec:
    """CTranslate2's specification of the model, with all weights, as copies in float32.

    Args:
        model: baked, in float32.
        options: what the model's cfg says.
        languages: of a model of several language pairs.
    """
    api = import_ctranslate2()
    encoder, decoder = model.encoder, model.decoder
    activation = api.specs.Activation[ACTIVATIONS[options.activation]]
    heads = stack_heads(model)
    parts = dict(attentions(model, model.layout.grid))
    common = {"activation": activation, "layernorm_embedding": encoder.layernorm_embedding is not None}
    encoder_spec = api.specs.TransformerEncoderSpec(
        len(encoder.layers),
        heads[0],
        pre_norm=options.encoder.pre_norm,
        no_final_norm=encoder.layer_norm is None,
        num_heads_kv=heads[0],
        head_dim=_head_dim(parts, "enc"),
        **common,
    )
    decoder_spec = api.specs.TransformerDecoderSpec(
        len(decoder.layers),
        heads[1],
        pre_norm=options.decoder.pre_norm,
        no_final_norm=decoder.layer_norm is None,
        num_heads_kv=heads[1],
        head_dim=_head_dim(parts, "dec"),
        project_in_out=decoder.project_in_dim is not None or decoder.project_out_dim is not None,
        alignment_layer=decoder.alignment_layer,
        alignment_heads=max(_packed(parts, Site("cross", decoder.alignment_layer), heads[1]).aligning, 1),
        **common,
    )
    _set_ends(encoder_spec, encoder, encoder_spec.embeddings[0])
    _set_ends(decoder_spec, decoder, decoder_spec.embeddings)
    for number, spec in enumerate(encoder_spec.layer):
        layer = encoder.layers[number]
        _set_attention(
            spec.self_attention, layer.self_attn_layer_norm, _packed(parts, Site("enc", number), heads[0]), 3
        )
        _set_feed_forward(spec.ffn, layer)
    for number, spec in enumerate(decoder_spec.layer):
        layer = decoder.layers[number]
        _set_attention(
            spec.self_attention, layer.self_attn_layer_norm, _packed(parts, Site("dec", number), heads[1]), 3
        )
        _set_attention(
            spec.attention, layer.encoder_attn_layer_norm, _packed(parts, Site("cross", number), heads[1]), 1
        )
        _set_feed_forward(spec.ffn, layer)
    _set_linear(decoder_spec.projection, (decoder.output_projection.weight, decoder.output_projection.bias))
    if hasattr(decoder_spec, "project_in"):
        width, size = decoder.embed_tokens.embedding_dim, decoder.output_embed_dim
        for spec, projection, dim in (
            (decoder_spec.project_in, decoder.project_in_dim, width),
            (decoder_spec.project_out, decoder.project_out_dim, size),
        ):
            _set_linear(spec, (torch.eye(dim) if projection is None else projection.weight, None))

    spec = api.specs.TransformerSpec(encoder_spec, decoder_spec)
    source, target = words.tokens()
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    # fairseq's sources end, and its targets begin, with the end of a sentence, or with tokens that whoever serves the model sends
    ends = (False, False) if languages is None else languages.replaced_ends
    spec.config.add_source_eos = not ends[0]
    spec.config.decoder_start_token = None if ends[1] else spec.config.eos_token
    # CTranslate2 does not ask for these; whoever serves the model has to know them, the end of a sentence counts
    limits = dict(zip(("max_source_positions", "max_target_positions"), model.max_positions(), strict=True))
    facts = {**limits, "padding": words.padding}
    if languages is not None:
        facts["language_pairs"] = {pair: languages.around(*pair.split("-")) for pair in languages.pairs}
    spec.config.add_attribute("fairseq_dsp", facts)
    return spec


def stack_heads(model: DspTransformerModel) -> tuple[int, int]:
    """N of encoder and decoder: the most heads that a sublayer of it keeps; at least 1, for CTranslate2 knows no fewer."""
    grid = model.layout.surviving
    return max([1, *grid.of("enc")]), max([1, *grid.of("dec"), *grid.of("cross")])


def _head_dim(parts: dict[Site, Any], stack: str) -> int | None:
    return next((attention.head_dim for site, attention in parts.items() if site.stack == stack), None)


def _packed(parts: dict[Site, Any], site: Site, heads: int) -> PackedAttention:
    return pack(parts[site], heads)


def _set_ends(spec: Any, side: nn.Module, embeddings: Any) -> None:
    """Everything of a stack outside its layers."""
    embeddings.weight = _array(side.embed_tokens.weight)
    spec.scale_embeddings = float(side.embed_scale)
    positions = side.embed_positions
    if positions is None:
        width = getattr(side, "embed_dim", side.embed_tokens.embedding_dim)  # the decoder's may be projected
        table = torch.zeros(side.max_positions(), width)
    else:
        # fairseq numbers positions from the padding's index on, and keeps that one for padding
        table = (positions.weight if isinstance(positions, nn.Embedding) else positions.weights)[side.padding_idx + 1 :]
    spec.position_encodings.encodings = _array(table)
    for name in ("layer_norm", "layernorm_embedding"):
        if getattr(side, name) is not None:
            _set_norm(getattr(spec, name), getattr(side, name))


def _set_attention(spec: Any, norm: nn.Module, packed: PackedAttention, fused: int) -> None:
    """`fused` of query, key and value share the first matrix: all three in self-attention, the query alone in cross."""
    parts = [packed.query, packed.key, packed.value]
    _set_linear(spec.linear[0], _joined(parts[:fused]))
    if parts[fused:]:
        _set_linear(spec.linear[1], _joined(parts[fused:]))
    _set_linear(spec.linear[-1], packed.output)
    spec.num_heads_kv, spec.head_dim = np.int32(packed.groups), np.int32(packed.size)
    _set_norm(spec.layer_norm, norm)


def _set_feed_forward(spec: Any, layer: nn.Module) -> None:
    rows, columns = pad_neurons(layer)
    _set_linear(spec.linear_0, rows)
    _set_linear(spec.linear_1, columns)
    _set_norm(spec.layer_norm, layer.final_layer_norm)


def _joined(parts: list[Affine]) -> Affine:
    biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases)


def _set_linear(spec: Any, affine: Affine) -> None:
    weight, bias = affine
    spec.weight = _array(weight)
    if bias is not None:
        spec.bias = _array(bias)


def _set_norm(spec: Any, norm: nn.Module) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Tensor) -> np.ndarray:
    # a copy: CTranslate2 quantises in place, and the model is asked again
    return tensor.detach().to(torch.float32, copy=True).contiguous().numpy()
