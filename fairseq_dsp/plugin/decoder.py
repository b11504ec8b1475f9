"""`DspTransformerDecoder`: fairseq's decoder, but for the layer that words are aligned by. Built by `model`."""

from __future__ import annotations

from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

NO_LAYER = -1


class DspTransformerDecoder(TransformerDecoderBase):
    """fairseq's decoder, whose alignment comes from the last layer that has a cross-attention head.

    Attributes:
        alignment_layer: index of that layer; the last one where no layer has one; `NO_LAYER` where nobody aligns.
    """

    alignment_layer = 0  # without annotation, which TorchScript could not read here

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ):
        """As in fairseq; `alignment_layer` defaults to the last layer that can align."""
        features, extra = self.extract_features_scriptable(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            self.alignment_layer if alignment_layer is None else alignment_layer,
            alignment_heads,
        )
        # contiguous, or torch multiplies a frozen output projection once a sentence instead of once a batch
        return features.contiguous(), extra
