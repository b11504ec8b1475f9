"""Runs fairseq's and our own commands, each in a forked child of the test process.

A fork has the imports done but a state of its own: what the commands leave behind in module globals (best scores, log
handlers, argparse registries, hydra) ends with it. Exit code, stdout and stderr are those of a real command.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

import fairseq_dsp
from fairseq_dsp.guards.versions import drop_fused_encoder_copies, settle_device_marks

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ["--user-dir", str(ROOT / "fairseq_dsp")]
TRAIN, GENERATE, INTERACTIVE = "fairseq_cli.train", "fairseq_cli.generate", "fairseq_cli.interactive"
PREPROCESS, HYDRA, VALIDATE = "fairseq_cli.preprocess", "fairseq_cli.hydra_train", "fairseq_cli.validate"
PRUNE, AVERAGE = "fairseq_dsp.cli.prune", "fairseq_dsp.cli.average"

# Before any fork. torch imports its compiler when it makes an optimizer, which takes longer than a whole training of ours.
for _name in (TRAIN, GENERATE, INTERACTIVE, PREPROCESS, HYDRA, VALIDATE, PRUNE, AVERAGE, "torch._dynamo"):
    importlib.import_module(_name)

# 2 + 2 layers of 2 heads: 12 heads in all
SHAPE = ["--encoder-layers", "2", "--decoder-layers", "2", "--encoder-attention-heads", "2"]
SHAPE += ["--decoder-attention-heads", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"]
SHAPE += ["--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16"]
HEADS = 12
COMMON = [*SHAPE, "--cpu", "--share-decoder-input-output-embed", "--label-smoothing", "0.1", "--lr", "1e-2"]
COMMON += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "5", "--dropout", "0.1", "--weight-decay", "0.0001"]
COMMON += ["--adam-betas", "(0.9, 0.98)", "--batch-size", "25", "--required-batch-size-multiple", "1"]
COMMON += ["--num-workers", "0", "--no-progress-bar", "--log-interval", "1", "--seed", "3"]
QUIET = ["--no-epoch-checkpoints", "--disable-validation"]
UPDATES_AN_EPOCH = 8
STOCK = {"task": "translation", "arch": "transformer_tiny", "criterion": "label_smoothed_cross_entropy"}
STOCK |= {"optimizer": "adam"}
OURS = {"task": "translation_dsp", "arch": "dsp_transformer_tiny", "criterion": "label_smoothed_cross_entropy_dsp"}
OURS |= {"optimizer": "dsp_adam"}


def _read_options_once() -> None:
    """Half of a small command's time went into hydra's reading of fairseq's 290 options, which are nearly the same in each: what a text says
    is remembered, for all children."""
    read, known = OverridesParser.parse_rule, {}

    def remembered(parser: OverridesParser, text: str, rule: str) -> Any:
        if (text, rule) not in known:
            known[text, rule] = read(parser, text, rule)
        return copy.copy(known[text, rule])  # hydra notes its loader in it

    OverridesParser.parse_rule = remembered
    # Each reading copies all that is registered, and then what it takes of it: the second copy is enough.
    ConfigStore.__deepcopy__ = lambda store, _: store
    arguments = [str(word) for word in training(Path("data"), Path("save"))]
    convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))


@dataclass
class Result:
    """What a finished command left."""

    code: int
    out: str
    err: str

    @property
    def refusals(self) -> list[str]:
        """Our sentences on stderr, without their prefix."""
        prefix = "fairseq_dsp: error: "
        return [line.removeprefix(prefix) for line in self.err.splitlines() if line.startswith(prefix)]

    def hypotheses(self) -> dict[int, str]:
        """Best hypothesis by sentence number, from generate's or interactive's output."""
        found = re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", self.out, re.MULTILINE)
        return {int(number): text for number, text in found}

    def scores(self) -> dict[int, float]:
        found = re.findall(r"^H-(\d+)\t([^\t]*)\t", self.out, re.MULTILINE)
        return {int(number): float(score) for number, score in found}

    def bleu(self) -> float:
        return float(re.findall(r"BLEU4? = ([\d.]+)", self.out)[-1])

    def logged(self, name: str, prefix: str = "train_inner") -> list[float]:
        """All values of a figure in the training log."""
        lines = [line for line in self.out.splitlines() if f"| {prefix} " in line]
        return [float(value) for line in lines for value in re.findall(rf"[| ]{name}[= ]([-\d.e+]+)", line)]


class Running:
    """A command, or a function of a test, under way."""

    def __init__(self, main: str | Callable[[], Any], arguments: Sequence[Any], folder: Path, stdin: str = "") -> None:
        self.paths = [folder / f".{os.urandom(6).hex()}.{name}" for name in ("in", "out", "err")]
        self.paths[0].write_text(stdin, encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(main, [str(argument) for argument in arguments], self.paths)

    def wait(self) -> Result:
        try:
            _, status = os.waitpid(self.pid, 0)
        except BaseException:
            os.kill(self.pid, 9)
            raise
        # who was killed at once has not opened them
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self.paths[1:]]
        for path in self.paths:
            path.unlink(missing_ok=True)
        return Result(os.waitstatus_to_exitcode(status), *texts)


def _child(main: str | Callable[[], Any], arguments: list[str], paths: list[Path]) -> None:
    code = 1
    try:
        for number, path in enumerate(paths):
            descriptor = os.open(path, os.O_RDWR if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        sys.argv = [str(main).rpartition(".")[2], *arguments]
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for name in (GENERATE, PREPROCESS):  # their handlers hold the parent's stream
            logging.getLogger(name).handlers.clear()
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s | %(name)s | %(message)s")
        (importlib.import_module(main).cli_main if isinstance(main, str) else main)()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(module: str, *arguments: Any, folder: Path, stdin: str = "") -> Result:
    """Runs a command to its end."""
    return Running(module, arguments, folder, stdin).wait()


def training(data: Path, save: Path, *extra: Any, **parts: Any) -> list[Any]:
    """Arguments of a training run. `parts` swaps task, arch, criterion or optimizer; None leaves ours; `stock=True`."""
    chosen = {**(STOCK if parts.pop("stock", False) else OURS), **parts}
    swaps = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return [data, *PLUGIN, *swaps, *COMMON, "--save-dir", save, *extra]


def train(data: Path, save: Path, *extra: Any, ok: bool = True, **parts: Any) -> Result:
    """Trains; the run must succeed unless `ok` is false."""
    save.parent.mkdir(parents=True, exist_ok=True)
    done = run(TRAIN, *training(data, save, *extra, **parts), folder=save.parent)
    assert not ok or done.code == 0, done.out[-3000:] + done.err[-3000:]
    return done


def budget(k: Any, cooldown: int = 8, lr: float = 0.2) -> list[Any]:
    """Options of our method."""
    return ["--unpruned-heads", k, "--cooldown-updates", cooldown, "--importance-lr", lr]


def prune(source: Path, target: Path, *extra: Any, ok: bool = True) -> Result:
    done = run(PRUNE, source, target, *extra, folder=target.parent)
    assert not ok or done.code == 0, done.err[-3000:]
    return done


def prune_to_each(source: Path, layouts: dict[str, str], folder: Path) -> dict[str, Path]:
    """Rewrites a checkpoint to each of the layouts; a file for each, by the layout's name."""
    paths = {name: folder / f"{name.replace(' ', '_')}.pt" for name in layouts}
    for name, path in paths.items():
        prune(source, path, "--layout", layouts[name])
    return paths


def generate(data: Path, path: Any, *extra: Any, folder: Path, ok: bool = True, subset: str = "test") -> Result:
    """Plain fairseq-generate: stock task, no word on pruning."""
    arguments = [data, *PLUGIN, "--path", path, "--gen-subset", subset, "--beam", "3", "--batch-size", "16", "--cpu"]
    arguments += ["--required-batch-size-multiple", "1", "--num-workers", "0", "--max-len-b", "15", *extra]
    done = run(GENERATE, *arguments, folder=folder)
    assert not ok or done.code == 0, done.out[-2000:] + done.err[-3000:]
    return done


def load(path: Path) -> dict[str, Any]:
    """A checkpoint as it lies in the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model in a checkpoint, without what fairseq 0.12.2 keeps twice or never writes to."""
    state = load(path)["model"]
    drop_fused_encoder_copies(state)
    settle_device_marks(state)
    return state


def heads_in(path: Path, head_dim: int = 8) -> int:
    """Heads that exist in a rewritten file, counted as rows of q_proj."""
    rows = [len(value) for name, value in load(path)["model"].items() if name.endswith("q_proj.weight")]
    assert rows
    assert not any(count % head_dim for count in rows)
    return sum(rows) // head_dim


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a nested state, with its path."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{name}.{index}")


def different(one: Any, other: Any) -> list[str]:
    """Paths of tensors that are not bit for bit the same in two states."""
    ours, theirs = dict(tensors(one)), dict(tensors(other))
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def assert_refused(done: Result, *words: str, reasons: int = 1) -> None:
    """Exit code 2, so many sentences on stderr, no traceback; every word is said."""
    assert done.code == 2, done.out[-2000:] + done.err[-3000:]
    assert "Traceback" not in done.err + done.out
    assert len(done.refusals) == reasons, done.err
    for word in words:
        assert word in "\n".join(done.refusals)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


assert fairseq_dsp.__version__


_read_options_once()
