"""The kind `ffn`: groups of g neurons of a feed-forward network. One owns g rows of fc1, its biases, and g columns of fc2."""

from __future__ import annotations

from fairseq_dsp.units.kind import Kind, Stack

NEURONS = Kind(
    name="ffn",
    noun="neuron groups",
    stacks=(
        Stack("ffn-enc", "encoder FFN", "encoder", ""),
        Stack("ffn-dec", "decoder FFN", "decoder", ""),
    ),
    readers=("fc2",),
    makers=("fc1",),
    marks="ffn_kept_mask",
)
