"""The only file that knows versions: which fairseq there is, what today's torch asks of it, what old checkpoints carry.

Imported first by the package, so that every command of fairseq that loads the plug-in is repaired before it reads a
checkpoint.
"""

from __future__ import annotations

import argparse
import collections
import logging
import re
import typing
import warnings

SUPPORTED = ("0.12.2", "0.12.3")

# fairseq's speech tasks announce at import that tensorboardX is missing; translation has no use for it
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)

try:
    import fairseq
except ImportError as error:
    raise ImportError(
        "fairseq_dsp needs fairseq, which is not installed: pip install 'fairseq_dsp[fairseq]' "
        "(or, for a fairseq of your own, fairseq-fixed 0.12.3.1)."
    ) from error

if not fairseq.__version__.startswith(SUPPORTED):
    raise ImportError(
        f"fairseq_dsp supports fairseq {' and '.join(SUPPORTED)}, but {fairseq.__version__} is installed: "
        "pip install 'fairseq_dsp[fairseq]'."
    )

import numpy as np
import torch
from fairseq.distributed.utils import _TensorPlaceholder
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode

try:
    from numpy._core import multiarray
except ImportError:  # numpy 1
    from numpy.core import multiarray  # type: ignore[no-redef]


def allow_checkpoint_types() -> None:
    """Lets torch's safe loading read what fairseq's checkpoints hold, and nothing else.

    Since torch 2.6 `torch.load` refuses every type that is not on a list. fairseq saves a Namespace (options of a legacy
    architecture), numpy numbers (BLEU statistics) and, when several processes resume, sends a whole state with OmegaConf
    objects from the first to the others. None of these types runs code when it is loaded.
    """
    if not hasattr(torch.serialization, "add_safe_globals"):
        return  # torch before 2.4 loads without a list
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            multiarray._reconstruct,
            multiarray.scalar,
            np.ndarray,
            np.dtype,
            *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
            DictConfig,
            ListConfig,
            AnyNode,
            Metadata,
            ContainerMetadata,
            typing.Any,
            collections.defaultdict,
            int,
            list,
            dict,
            _TensorPlaceholder,  # where a tensor was, in what the first process sends to the others
        ]
    )


def quieten_warnings() -> None:
    """Filters fairseq's warnings that are known and harmless; each says what it is."""
    for message, category in (
        # hydra: fairseq composes its config in the manner of hydra 1.0
        (r"hydra\.experimental\.\w+\(\) is no longer experimental", UserWarning),
        (r"\s*The strict flag in the compose API is deprecated", UserWarning),
        (r"\s*'config' is validated against ConfigStore schema", UserWarning),
        (r"\s*The version_base parameter is not specified", UserWarning),
        (r"\s*In 'config': ", UserWarning),
        (r"\s*Invalid overriding of hydra/job_logging", UserWarning),
        # torch: fairseq's trainer opens autocast by its old name, also where autocast is off
        (r".*torch\.cuda\.amp\.", FutureWarning),
        # torch: fairseq pins memory without asking whether there is an accelerator
        (r".*pin_memory", UserWarning),
        # torch: stock attention mixes a boolean padding mask with a float causal mask
        (r".*mismatched key_padding_mask and attn_mask", UserWarning),
    ):
        warnings.filterwarnings("ignore", message=message, category=category)


# The fused encoder of fairseq 0.12.2 keeps second copies of every encoder layer's weights under these names.
_FUSED_COPY = re.compile(
    r"(^|\.)encoder\.layers\.\d+\.(in_proj_weight|in_proj_bias|out_proj_weight|out_proj_bias"
    r"|fc1_weight|fc1_bias|fc2_weight|fc2_bias)$"
)


def drop_fused_encoder_copies(state: dict[str, typing.Any]) -> None:
    """Removes from a state, in place, what only the fused encoder of fairseq 0.12.2 reads."""
    for name in [name for name in state if _FUSED_COPY.search(name)]:
        del state[name]


allow_checkpoint_types()
quieten_warnings()
