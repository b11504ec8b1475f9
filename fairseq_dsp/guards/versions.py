"""The only file that knows versions: which fairseq there is, what today's torch asks of it, what old checkpoints carry.

Imported first by the package, so that an unsupported version is refused before anything else fails over it.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import types
import typing
import warnings
from unittest import mock

FAIRSEQ = ("0.12.2", "0.12.3")
TORCH = (2, 5), (3, 0)  # from the first version to before the second, as setup.py says

try:
    import torch
except ImportError as error:
    raise ImportError("fairseq_dsp needs torch, which cannot be imported: pip install 'torch>=2.5,<3'.") from error

try:
    from numpy._core import multiarray  # what arrays in a checkpoint name
except ImportError:  # numpy 1
    from numpy.core import multiarray  # type: ignore[no-redef]  # noqa: F401

# before fairseq, which some versions of torch stop in the middle of its own imports
_torch = tuple(int(part) for part in torch.__version__.split(".")[:2])
if not TORCH[0] <= _torch < TORCH[1]:
    raise ImportError(
        f"fairseq_dsp supports torch from 2.5 to before 3, but {torch.__version__} is installed: "
        "pip install 'torch>=2.5,<3'."
    )

# fairseq's speech tasks announce at import that tensorboardX is missing; translation has no use for it
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)

try:
    import fairseq
except ImportError as error:
    raise ImportError(
        "fairseq_dsp needs fairseq, which is not installed: pip install 'fairseq_dsp[fairseq]' "
        "(or, for a fairseq of your own, fairseq-fixed 0.12.3.1)."
    ) from error

if not re.match(rf"({'|'.join(map(re.escape, FAIRSEQ))})(?!\d)", fairseq.__version__):
    raise ImportError(
        f"fairseq_dsp supports fairseq {' and '.join(FAIRSEQ)}, but {fairseq.__version__} is installed: "
        "pip install 'fairseq_dsp[fairseq]'."
    )

import omegaconf
from omegaconf import DictConfig, OmegaConf
from torch import nn

TORCH_LOADS_CARELESSLY = _torch < (2, 6)


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


def config_of_checkpoint(content: typing.Any) -> DictConfig:
    """A checkpoint's `cfg` as OmegaConf, which may hold the Namespace of a legacy architecture."""
    if omegaconf.__version__ >= "2.1":
        return OmegaConf.create(content, flags={"allow_objects": True})
    # fairseq 0.12.2 asks for OmegaConf 2.0, which has no flag for it
    with mock.patch.object(omegaconf._utils, "is_primitive_type", return_value=True):
        return OmegaConf.create(content)


# The fused encoder of fairseq 0.12.2 keeps second copies of every encoder layer's weights under these names.
FUSED_COPIES = tuple(f"{stem}_{kind}" for stem in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias"))
_FUSED_COPY = re.compile(rf"(^|\.)encoder\.layers\.\d+\.({'|'.join(FUSED_COPIES)})$")


def drop_fused_encoder_copies(state: dict[str, typing.Any]) -> None:
    """Removes from a state, in place, what only the fused encoder of fairseq 0.12.2 reads."""
    for name in [name for name in state if _FUSED_COPY.search(name)]:
        del state[name]


_DEVICE_MARK = "_float_tensor"


def settle_device_marks(state: dict[str, typing.Any]) -> None:
    """Zeroes, in a state, the tensors by which some of fairseq's modules know their device.

    Sinusoidal positions of 0.12.2, and adaptive inputs and softmaxes of every version, keep one number of memory that nobody has
    written to. It would make equal models differ, and may be NaN.
    """
    for name, value in state.items():
        if str(name).rpartition(".")[2] == _DEVICE_MARK and torch.is_tensor(value):
            state[name] = torch.zeros(1)


def settle_device_marks_of(model: nn.Module) -> None:
    """The same in a model that has just been built."""
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == _DEVICE_MARK:
            buffer.zero_()


def disable_fused_encoder(encoder: nn.Module) -> None:
    """Makes every layer of an encoder compute by its modules, in place. Only fairseq 0.12.2's layers know another way.

    In evaluation they hand second copies of their weights to one kernel of torch, past `self_attn` and so past gates and
    missing heads. The copies go too: they would count as parameters, and loading would fill them from biases and rows
    that a layer without heads does not have. Empty tensors take their names, for TorchScript reads all of the forward pass.
    """
    for layer in (encoder.layers[index] for index in range(len(encoder.layers))):
        if hasattr(layer, "can_use_fastpath"):
            layer.can_use_fastpath = False
            for name in FUSED_COPIES:
                delattr(layer, name)
                layer.register_buffer(name, torch.empty(0), persistent=False)
            # the layer's own version writes the copies into the state, and switches the fused kernel on
            layer._load_from_state_dict = types.MethodType(nn.Module._load_from_state_dict, layer)


quieten_warnings()

# Where batches are loaded by worker processes, a worker inherits the iterator of an earlier epoch. When its garbage collector
# comes upon that, torch complains that it "can only test a child process". What is inherited is the parent's to clean up.
os.register_at_fork(after_in_child=gc.freeze)
