"""fairseq_dsp: train a Transformer under a budget of attention heads, and get a checkpoint with exactly that many.

The plug-in's entry: `--user-dir fairseq_dsp` imports this package, which registers the tasks, the architectures, the
criterion and the optimizer with fairseq.
"""

__version__ = "0.1.0"

import fairseq_dsp.guards.versions  # isort: skip  # first: refuses what the others cannot work with
import fairseq_dsp.guards.untrusted  # isort: skip  # before anything reads a checkpoint
import fairseq_dsp.plugin.criterion
import fairseq_dsp.plugin.model
import fairseq_dsp.plugin.multilingual
import fairseq_dsp.plugin.optimizer
import fairseq_dsp.plugin.task
