"""What differs between versions of fairseq and torch: refusals at import, the fused encoder of fairseq 0.12.2."""

from __future__ import annotations

import copy
import runpy
import subprocess
import sys
import types
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq.models.transformer import TransformerEncoderBase
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from models import assert_same, build, build_gated, build_with, scores, scores_as_generated, sentences
from omegaconf import OmegaConf

from fairseq_dsp.config import get_option
from fairseq_dsp.guards import versions
from fairseq_dsp.guards.versions import (
    FUSED_COPIES,
    config_of_checkpoint,
    disable_fused_encoder,
    drop_fused_encoder_copies,
    settle_device_marks,
    settle_device_marks_of,
)
from fairseq_dsp.units.layout import Grid, Layout

ROOT = Path(__file__).resolve().parents[2]


def refusal() -> str:
    """What the file that knows versions says when it is run with what the test has put in place."""
    with pytest.raises(ImportError) as refused:
        runpy.run_path(versions.__file__)
    return str(refused.value)


@pytest.mark.parametrize(
    ("package", "version", "supported", "wanted"),
    [
        (torch, "2.4.1+cu121", "from 2.5 to before 3", "torch>=2.5,<3"),
        (torch, "3.0.0.dev20270101", "from 2.5 to before 3", "torch>=2.5,<3"),
        (fairseq, "0.12.1", "0.12.2 and 0.12.3", "fairseq_dsp[fairseq]"),
        (fairseq, "0.12.20", "0.12.2 and 0.12.3", "fairseq_dsp[fairseq]"),
        (fairseq, "1.0.0a0", "0.12.2 and 0.12.3", "fairseq_dsp[fairseq]"),
    ],
)
def test_an_unsupported_version_is_refused_in_a_sentence(package, version, supported, wanted, monkeypatch):
    monkeypatch.setattr(package, "__version__", version)
    assert refusal() == (
        f"fairseq_dsp supports {package.__name__} {supported}, but {version} is installed: pip install '{wanted}'."
    )


@pytest.mark.parametrize("name", ["torch", "fairseq"])
def test_a_missing_package_is_named(name: str, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    assert refusal().startswith(f"fairseq_dsp needs {name}, which ")


def test_importing_the_package_refuses_before_anything_else_fails():
    program = "import sys, torch; torch.__version__ = '2.4.1'; sys.modules['fairseq'] = None; import fairseq_dsp"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: fairseq_dsp supports torch from 2.5")


class FusedLayer(TransformerEncoderLayerBase):
    """An encoder layer that bypasses its attention as fairseq 0.12.2's does, on whatever fairseq is installed."""

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        self.can_use_fastpath = True
        for name in FUSED_COPIES:
            setattr(self, name, torch.nn.Parameter(torch.zeros(3)))

    def _load_from_state_dict(self, state_dict, prefix, *others):
        for name in FUSED_COPIES:
            state_dict[prefix + name] = torch.zeros(3)
        super(TransformerEncoderLayerBase, self)._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x, *args, **kwargs):
        return 2 * x if self.can_use_fastpath else super().forward(x, *args, **kwargs)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders are built of layers that have a fused path."""
    monkeypatch.setattr(TransformerEncoderBase, "build_encoder_layer", lambda self, cfg: FusedLayer(cfg))


@pytest.fixture
def native_or_simulated(request: pytest.FixtureRequest) -> None:
    """fairseq 0.12.2's own layers where that is installed, else the simulation."""
    layer = build(arch="transformer").encoder.layers[0]
    if not hasattr(layer, "can_use_fastpath"):
        request.getfixturevalue("fused")


def reloaded(model):
    """The model after loading its own state, as generation does: from here 0.12.2's own layers use the fused path."""
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return model.eval()


LAYOUT = Layout.parse("enc:100.000/dec:011.111/cross:010.001")


@pytest.mark.usefixtures("native_or_simulated")
def test_gates_reach_the_encoder_s_output_where_layers_have_a_fused_path():
    model = reloaded(build_gated(kept=0))
    dense = reloaded(build_gated(kept=18))
    source, lengths, _ = sentences()
    none, every = (each.encoder(source, lengths)["encoder_out"][0] for each in (model, dense))
    assert not torch.allclose(none, every)
    unpruned = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, unpruned[name])


@pytest.mark.usefixtures("native_or_simulated")
def test_masked_and_rewritten_agree_where_layers_have_a_fused_path():
    masked = reloaded(build_gated(kept=5))
    small = copy.deepcopy(masked)
    small.bake()
    assert small.layout.count == 5
    assert_same(scores(reloaded(small)), scores(masked))
    assert_same(scores_as_generated(small), scores_as_generated(masked))


@pytest.mark.usefixtures("native_or_simulated")
def test_layers_without_heads_load_where_layers_have_a_fused_path():
    model = build_with(LAYOUT)
    before = scores(model)
    assert_same(scores(reloaded(model)), before)


@pytest.mark.usefixtures("native_or_simulated")
def test_the_second_copies_are_no_parameters_of_our_models():
    names = [name for name, _ in build_with(LAYOUT).named_parameters()]
    assert not [name for name in names if name.startswith("encoder.layers.") and name.split(".")[-1] in FUSED_COPIES]


def test_layers_without_a_fused_path_are_left_alone():
    layer = torch.nn.Linear(2, 2)
    before = list(vars(layer))
    disable_fused_encoder(types.SimpleNamespace(layers=[layer]))
    assert list(vars(layer)) == before


def test_only_the_second_copies_leave_a_state():
    names = ["encoder.layers.0.fc1_weight", "encoder.layers.11.in_proj_bias", "encoder.layers.0.fc1.weight"]
    names += ["encoder.layers.0.self_attn.out_proj.weight", "decoder.layers.0.fc1_weight"]
    state = dict.fromkeys(names)
    drop_fused_encoder_copies(state)
    assert list(state) == names[2:]


def test_the_grid_of_a_model_with_fused_layers_is_the_usual_one(fused: None):
    assert build_gated().layout.grid == Grid.of_heads((3, 3), (3, 3), (3, 3))


def test_what_nobody_has_written_to_is_zero_in_states_and_models():
    state = {"encoder.embed_positions._float_tensor": torch.tensor([float("nan")]), "x_float_tensor": torch.ones(2)}
    settle_device_marks(state)
    assert torch.equal(state["encoder.embed_positions._float_tensor"], torch.zeros(1))
    assert torch.equal(state["x_float_tensor"], torch.ones(2))
    positions = torch.nn.Module()
    positions.register_buffer("_float_tensor", torch.tensor([float("nan")]))
    model = torch.nn.ModuleDict({"positions": positions})
    settle_device_marks_of(model)
    assert positions._float_tensor.item() == 0


def test_options_that_a_checkpoint_lacks_are_not_given():
    cfg = config_of_checkpoint({"task": {"_name": "translation"}}).task
    OmegaConf.set_struct(cfg, True)
    assert get_option(cfg, "unpruned_heads") is None
    assert get_option(cfg, "_name") == "translation"


@pytest.mark.parametrize(("version", "forced"), [("2.5.1", True), ("2.13.0", False)])
def test_an_older_torch_is_told_to_load_safely(version: str, forced: bool):
    before = "import os, torch; os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)\n"
    after = f"assert ('TORCH_FORCE_WEIGHTS_ONLY_LOAD' in os.environ) == {forced}"
    program = f"{before}torch.__version__ = '{version}'\nimport fairseq_dsp\n{after}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-1000:]


_LEFTOVER = """
import gc, multiprocessing, os, sys
from torch.utils.data import DataLoader
{plug_in}
gc.disable()  # what is left over stays until somebody collects it
used = iter(DataLoader([1, 2], num_workers=1))
next(used)
cycle = [used]
cycle.append(cycle)
del used, cycle

def work():
    gc.enable()
    gc.collect()
    sys.stderr.write("the child has worked")

if {forks}:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    os.waitpid(child, 0)
else:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
gc.collect()
"""


@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("plug_in", ["", "import fairseq_dsp"])
def test_a_worker_does_not_clean_up_what_its_parent_left_over(plug_in, forks):
    """The iterator of an earlier epoch; torch's complaint stands in every training with workers, unless there is the plug-in."""
    program = _LEFTOVER.format(plug_in=plug_in, forks=forks)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "the child has worked" in done.stderr
    assert ("can only test a child process" in done.stderr) == (not plug_in)
