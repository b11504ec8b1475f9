"""`PrunableAttention`: multi-head attention with any number of heads, none included, and a gate on every head.

    Attention(X, Y) = sum_i  g_i · softmax(X Q_i (Y K_i)^T / sqrt(d)) Y V_i O_i  +  b

i runs over the h heads that exist, g_i is the gate of a head (1 where no gates are installed), b the output bias. The
gates scale the columns of the output projection, which is the same function as scaling every head's context but costs
C x C instead of T x B x C, and it holds on every path, because every path ends in that projection.

It takes the place of fairseq's `MultiheadAttention` after construction (`surgery.make_prunable`) and keeps its parameter
names, so that dense checkpoints load. Where no attention weights are asked for it calls PyTorch's fused kernel, unlike stock
fairseq in cross-attention too. Shapes: B batch, T query length, S key length, C embedding, h heads, d head size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.idle import tie
from fairseq_dsp.modules.masks import additive_mask, join_padding
from fairseq_dsp.modules.shared_sources import neighbours_of_search, number, order_of_search
from fairseq_dsp.modules.site_gates import Gates, Record, linear_of
from fairseq_dsp.modules.slicing import keep_units
from fairseq_dsp.units.heads import HEADS

_instances = itertools.count()


class PrunableAttention(nn.Module):
    """Multi-head attention over the heads that exist.

    Args:
        attention: fairseq's attention whose projections (and dropout) this one takes over.

    Attributes:
        num_heads: h, heads that exist.
        head_dim: d, the size of a head; independent of h.
        gates: what yields the gates [h], or None.
        slices: what a head owns of which projection.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed_dim: int = attention.embed_dim
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.self_attention: bool = attention.self_attention
        self.encoder_decoder_attention: bool = attention.encoder_decoder_attention
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj = attention.out_proj
        self.dropout_module = attention.dropout_module
        self.gates: Gates | None = None
        self.slices = HEADS.slices(self.head_dim)
        # fairseq keeps one flat dictionary of caches for the whole decoder
        self.cache_key = f"prunable_attention_{next(_instances)}.attn_state"

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Removes every other head, for good.

        Args:
            heads: which of the heads that exist now to keep, in increasing order; may be empty.
        """
        keep_units(self, self.slices, heads)
        self.num_heads = len(heads)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            query: [T, B, C].
            key: [S, B, C], or None where the cache holds it; with beam search B may be the beams' or the sentences'.
            value: as key.
            key_padding_mask: [B, S], true at padding.
            incremental_state: the decoder's caches; ours holds keys and values of the heads that exist.
            need_weights: return the attention weights, averaged over the heads: [B, T, S].
            static_kv: keys and values do not change between steps.
            attn_mask: [T, S], added to the scores.
            need_head_weights: return the weights of every head: [h, B, T, S].

        Returns:
            output [T, B, C] and the weights; None for weights where they are not asked for or no head is left.
        """
        live: Record | None = None
        if self.gates is not None:
            live = self.gates.live(self, incremental_state)
        length, batch, _ = query.size()
        if self.num_heads == 0 or (live is not None and live["q_proj.weight"].size(0) == 0):
            return self._bias(query, key, live), None
        q = self._split(self.q_proj(query) if live is None else linear_of(query, live, "q_proj"))
        k, v, key_padding_mask = self._keys_and_values(
            query, key, value, key_padding_mask, incremental_state, static_kv, live
        )
        kv_batch = k.size(0)
        if kv_batch != batch:  # beams of a sentence share its keys: lay them side by side as further queries
            q = q.view(kv_batch, -1, q.size(1), length, self.head_dim).transpose(1, 2).flatten(2, 3)
            if attn_mask is not None:
                attn_mask = attn_mask.repeat(q.size(2) // length, 1)
        mask = additive_mask(attn_mask, key_padding_mask, q)
        weights: Tensor | None = None
        if need_weights or need_head_weights:
            context, weights = self._attend_with_weights(q, k, v, mask)
        else:
            dropped = self.dropout_module.training or self.dropout_module.apply_during_inference
            dropout = self.dropout_module.p if dropped else 0.0
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        if kv_batch != batch:
            context = _unfold_beams(context, length)
            if weights is not None:
                weights = _unfold_beams(weights, length)
        output, on = self._project(context.permute(2, 0, 1, 3).flatten(2), live)
        if weights is None:
            return output, None
        weights = weights.transpose(0, 1)  # [h, B, T, S]
        if on is not None:  # a masked head has no say in an alignment
            weights = weights[on]
        if weights.size(0) == 0:
            return output, None
        return output, weights if need_head_weights else weights.mean(dim=0)

    def _project(self, context: Tensor, live: Record | None) -> tuple[Tensor, Tensor | None]:
        """Output projection [T, B, C] of the gated heads, and which are on where a mask has removed some: [h] bool."""
        if live is not None:
            return linear_of(context, live, "out_proj"), None
        if self.gates is None:
            return self.out_proj(context), None
        gates = self.gates()
        columns = gates.repeat_interleave(self.head_dim)
        weight = self.out_proj.weight
        self.gates.see(context, weight)
        # Float32 gates make these float32 products in a half-precision model: the gradient of a gate sums very many.
        if gates.requires_grad and not weight.requires_grad:
            # A frozen weight needs no gradient, and to make one for the gates alone costs more than to scale contexts.
            context = (context * columns).to(context.dtype)
        else:
            weight = (weight * columns).to(weight.dtype)
        return F.linear(context, weight, self.out_proj.bias), None if self.training else gates != 0

    def _bias(self, query: Tensor, key: Tensor | None, live: Record | None) -> Tensor:
        """What a sublayer without heads still adds: its output bias. The norms around it act as always."""
        bias = self.out_proj.bias if live is None else live.get("out_proj.bias")
        if bias is None:
            return torch.zeros_like(query)
        if not torch.jit.is_scripting():
            if callable(bias):  # a method in torch's int8 layers
                bias = bias().to(query)
            if self.encoder_decoder_attention and key is not None and key.requires_grad:
                bias = tie(bias, key)  # or the encoder would have no gradient where no cross head is left
        return bias.expand_as(query)

    def _keys_and_values(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None,
        static_kv: bool,
        live: Record | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B, h, S, d], cached steps included, and the padding mask [B, S] that belongs to them."""
        cache = self._get_input_buffer(incremental_state)
        past_key, past_value = cache.get("prev_key"), cache.get("prev_value")
        if static_kv and past_key is not None and past_value is not None:
            return past_key, past_value, cache.get("prev_key_padding_mask")
        if self.self_attention:
            key = value = query
        assert key is not None
        assert value is not None
        if static_kv and incremental_state is not None and value is key and not torch.is_grad_enabled():
            # fairseq repeats the encoder's output for every beam: project it once a sentence
            repeats = neighbours_of_search(incremental_state, self.cache_key, key, key_padding_mask)
            if repeats > 1:
                key = value = key[:, ::repeats]
                if key_padding_mask is not None:
                    key_padding_mask = key_padding_mask[::repeats]
        if live is None:
            k, v = self._split(self.k_proj(key)), self._split(self.v_proj(value))
        else:
            k, v = self._split(linear_of(key, live, "k_proj")), self._split(linear_of(value, live, "v_proj"))
        if past_key is not None and past_value is not None:
            key_padding_mask = join_padding(
                cache.get("prev_key_padding_mask"), key_padding_mask, k.size(0), past_key.size(2), k.size(2)
            )
            k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        if incremental_state is not None:
            cache = {"prev_key": k, "prev_value": v, "prev_key_padding_mask": key_padding_mask}
            if static_kv:
                cache["shared_by"] = number(query.size(1) // k.size(0))
            self._set_input_buffer(incremental_state, cache)
        return k, v, key_padding_mask

    def _attend_with_weights(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = torch.matmul(q / math.sqrt(self.head_dim), k.transpose(2, 3))
        if mask is not None:
            scores = scores + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return torch.matmul(self.dropout_module(weights.type_as(scores)), v), weights

    def _split(self, x: Tensor) -> Tensor:
        """[T, B, h·d] -> [B, h, T, d]."""
        return x.view(x.size(0), x.size(1), x.size(2) // self.head_dim, self.head_dim).permute(1, 2, 0, 3)

    def __prepare_scriptable__(self) -> PrunableAttention:
        """What `torch.jit.script` asks first. Of gates it would say, on a page about types, no more than that it fails."""
        if self.gates is not None:
            raise Refusal("`torch.jit.script` must have a model without gates: call `model.bake()` first.")
        return self

    # What fairseq's decoder layers, beam search and checkpoint loader ask of an attention.

    @torch.jit.export
    def reorder_incremental_state(
        self, incremental_state: dict[str, dict[str, Tensor | None]], new_order: Tensor
    ) -> dict[str, dict[str, Tensor | None]]:
        """Follows the beam search's reshuffling of hypotheses."""
        cache = self._get_input_buffer(incremental_state)
        order = new_order
        shared, entries = cache.get("shared_by"), cache.get("prev_key")
        if shared is not None and entries is not None:
            order, still_shared_by, unmoved = order_of_search(
                incremental_state, self.cache_key, new_order, int(shared), entries.size(0)
            )
            if unmoved:
                return incremental_state
            cache["shared_by"] = number(still_shared_by)
        for name, cached in cache.items():
            if cached is not None and name != "shared_by":
                cache[name] = cached.index_select(0, order)
        if len(cache) > 0:
            self._set_input_buffer(incremental_state, cache)
        return incremental_state

    def _get_input_buffer(
        self, incremental_state: dict[str, dict[str, Tensor | None]] | None
    ) -> dict[str, Tensor | None]:
        empty: dict[str, Tensor | None] = {}
        if incremental_state is None or self.cache_key not in incremental_state:
            return empty
        return incremental_state[self.cache_key]

    def _set_input_buffer(
        self, incremental_state: dict[str, dict[str, Tensor | None]], buffer: dict[str, Tensor | None]
    ) -> dict[str, dict[str, Tensor | None]] | None:
        incremental_state[self.cache_key] = buffer
        return incremental_state

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Splits the joint `in_proj_weight` and `in_proj_bias` of fairseq's oldest checkpoints."""
        for kind in ("weight", "bias"):
            joint = state_dict.pop(f"{name}.in_proj_{kind}", None)
            if joint is not None:
                for projection, part in zip("qkv", joint.chunk(3), strict=True):
                    state_dict[f"{name}.{projection}_proj.{kind}"] = part


def _unfold_beams(x: Tensor, length: int) -> Tensor:
    """[sentences, h, beams·T, n] -> [sentences·beams, h, T, n]."""
    return x.view(x.size(0), x.size(1), -1, length, x.size(3)).transpose(1, 2).flatten(0, 1)
