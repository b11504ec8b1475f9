"""The kind `sublayers`: an attention or a feed-forward network as a whole. One owns all units of its site, and nothing of its own."""

from __future__ import annotations

from fairseq_dsp.units.kind import Kind

SUBLAYERS = Kind(name="sublayers", noun="sublayers", stacks=(), readers=(), makers=(), marks="")
