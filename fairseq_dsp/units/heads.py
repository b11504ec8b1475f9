"""The kind `heads`: attention heads. One of size d owns d rows of q, k and v, and d columns of the output projection."""

from __future__ import annotations

from fairseq_dsp.units.kind import Kind, Stack

HEADS = Kind(
    name="heads",
    noun="heads",
    stacks=(
        Stack("enc", "encoder self", "encoder", "self_attn"),
        Stack("dec", "decoder self", "decoder", "self_attn"),
        Stack("cross", "cross", "decoder", "encoder_attn"),
    ),
    readers=("out_proj",),
    makers=("q_proj", "k_proj", "v_proj"),
    marks="kept_mask",
)
