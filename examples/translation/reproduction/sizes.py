"""How many weights a transformer has, and the dense one that is as large as a pruned one: arithmetic, no model is built."""

from __future__ import annotations

from math import lcm

Shape = tuple[int, int, int, int]  # layers of each side, heads of a sublayer, width, inner width


def weights(shape: Shape, words: tuple[int, int], pre_norm: bool) -> int:
    """Parameters of stock fairseq's transformer whose decoder shares its embeddings with its output.

    Args:
        words: entries of the two dictionaries.
    """
    layers, _, width, inner = shape
    attention, norm = 4 * width * (width + 1), 2 * width
    forward = inner * (2 * width + 1) + width
    encoder, decoder = attention + forward + 2 * norm, 2 * attention + forward + 3 * norm
    return sum(words) * width + layers * (encoder + decoder) + (2 * norm if pre_norm else 0)


def pruned_weights(shape: Shape, words: tuple[int, int], pre_norm: bool, kept: int) -> int:
    """What is left of them with `kept` of the heads: each takes its rows of q, k, v with biases, and columns of the output projection."""
    layers, heads, width, _ = shape
    head = width // heads
    return weights(shape, words, pre_norm) - (3 * layers * heads - kept) * head * (4 * width + 3)


def small_shape(shape: Shape, words: tuple[int, int], pre_norm: bool, kept: int) -> Shape:
    """The shape of the dense model that is as large as what `kept` heads leave; see `shape_of_size`."""
    return shape_of_size(shape, words, pre_norm, pruned_weights(shape, words, pre_norm, kept))


def shape_of_size(shape: Shape, words: tuple[int, int], pre_norm: bool, size: int) -> Shape:
    """The shape of a smaller dense model of so many weights, short of less than a neuron in every layer.

    Layers and heads stay, widths fall; of all such shapes the one whose feed-forward layers are in proportion closest to what they were.
    """
    layers, heads, width, inner = shape
    even = lcm(heads, 2)  # heads are as wide as each other
    found = []
    for narrow in range(max(even, 4), width + 1, even):  # a width of 2 has no positions in fairseq
        neurons = (size - weights((layers, heads, narrow, 0), words, pre_norm)) // (2 * layers * (2 * narrow + 1))
        if neurons > 0:
            found.append((abs(neurons / narrow - inner / width), narrow, neurons))
    _, narrow, neurons = min(found)
    return layers, heads, narrow, neurons
