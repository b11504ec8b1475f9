"""A training with spectral norms: resumed, rewritten, translated, exported and averaged by the commands, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import AVERAGE, QUIET, assert_refused, budget, different, generate, load, prune, run, train
from test_score import score

from fairseq_dsp.plugin.importance_start import importance_of

EXPORT = "fairseq_dsp.cli.export"
NORMS = ["--spectral-norm", "fc1,fc2,out_proj,v_proj"]
TRAINING = [*QUIET, *NORMS, *budget(5, cooldown=4), "--save-interval-updates", 5]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of ten updates, with its fifth too."""
    save = tmp_path_factory.mktemp("spectral") / "save"
    train(data, save, *TRAINING, "--max-update", 10)
    return save


def is_plain(path: Path) -> bool:
    state = load(path)
    return not any("parametrizations" in name for name in state["model"])


def test_it_is_resumed_exactly(trained: Path, data: Path, tmp_path: Path):
    start = trained / "checkpoint_1_5.pt"
    train(data, tmp_path, *TRAINING, "--max-update", 10, "--restore-file", start)
    ours, theirs = (load(folder / "checkpoint_last.pt") for folder in (tmp_path, trained))
    assert different(ours["model"], theirs["model"]) == []
    assert different(ours["last_optimizer_state"], theirs["last_optimizer_state"]) == []


def test_it_is_folded_before_it_is_rewritten_and_translates_as_it_was(trained: Path, data: Path, tmp_path: Path):
    assert not is_plain(trained / "checkpoint_last.pt")
    prune(trained / "checkpoint_last.pt", tmp_path / "small.pt")
    assert is_plain(tmp_path / "small.pt")
    assert not getattr(load(tmp_path / "small.pt")["cfg"]["model"], "spectral_norm", None)
    masked = generate(data, trained / "checkpoint_last.pt", folder=tmp_path)
    small = generate(data, tmp_path / "small.pt", folder=tmp_path)
    assert small.hypotheses() == masked.hypotheses()
    assert small.scores() == pytest.approx(masked.scores(), abs=1e-4)


def test_ctranslate2_gets_true_weights(trained: Path, corpus: Path, data: Path, tmp_path: Path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    done = run(EXPORT, "--format", "ctranslate2", "--data", data, trained / "checkpoint_last.pt", tmp_path / "ct2", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.err[-2000:]
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    sentences = [line.split() for line in (corpus / "test.aa").read_text().splitlines()]
    masked = generate(data, trained / "checkpoint_last.pt", "--beam", 1, folder=tmp_path)
    found = translator.translate_batch(sentences, beam_size=1, max_decoding_length=15)
    assert [" ".join(each.hypotheses[0]) for each in found] == [text for _, text in sorted(masked.hypotheses().items())]


def test_stock_fairseq_and_averages_get_true_weights(trained: Path, data: Path, tmp_path: Path):
    done = run(EXPORT, "--format", "dense", trained / "checkpoint_last.pt", tmp_path / "native.pt", folder=tmp_path)
    assert done.code == 0, done.err[-2000:]
    assert is_plain(tmp_path / "native.pt")
    masked = generate(data, trained / "checkpoint_last.pt", folder=tmp_path)
    native = generate(data, tmp_path / "native.pt", folder=tmp_path)
    assert native.scores() == pytest.approx(masked.scores(), abs=1e-4)
    same = [trained / "checkpoint_last.pt"] * 2
    assert run(AVERAGE, tmp_path / "mean.pt", *same, folder=tmp_path).code == 0
    assert is_plain(tmp_path / "mean.pt")
    mean = generate(data, tmp_path / "mean.pt", folder=tmp_path)
    assert mean.scores() == pytest.approx(masked.scores(), abs=1e-4)


def test_a_training_may_start_from_a_dense_model_and_not_change_its_norms_on_the_way(
    trained: Path, dense: Path, data: Path, tmp_path: Path
):
    options = [*QUIET, *budget(5, cooldown=4), "--max-update", 2]
    train(data, tmp_path / "from-dense", *options, *NORMS, "--finetune-from-model", dense)
    start = ["--restore-file", trained / "checkpoint_1_5.pt", "--max-update", 9]
    done = train(data, tmp_path / "without", *options, *start, ok=False)
    assert_refused(done, "`--spectral-norm` must stay fc1,fc2,out_proj,v_proj")
    done = train(data, tmp_path / "plain", *options, "--finetune-from-model", trained / "checkpoint_last.pt", ok=False)
    assert_refused(done, "a spectral norm that was not folded")


def test_scores_of_plain_weights_are_of_the_same_weights_with_norms(dense: Path, data: Path, tmp_path: Path):
    score(data, dense, tmp_path / "scores.json", scorer="magnitude")
    start = ["--finetune-from-model", dense, "--importance-from", tmp_path / "scores.json", "--importance-lr", 0]
    train(data, tmp_path / "save", *QUIET, *NORMS, *budget(5, cooldown=4)[:4], *start, "--max-update", 1)
    wanted = importance_of(torch.tensor(json.loads((tmp_path / "scores.json").read_text())["scores"])).float()
    assert load(tmp_path / "save/checkpoint_last.pt")["model"]["head_gates.importance"].equal(wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--spectral-norm", "fc1,fc3"], "`--spectral-norm` must be names of maps (q_proj, k_proj, v_proj, out_proj, fc1, fc2)"),
        (["--spectral-norm", "fc1", "--fp16"], "`--spectral-norm` must be trained in float32"),
        (["--spectral-norm", "fc1", "--pipelined"], "`--spectral-norm` must not be given with `--pipelined`, which trains no weight"),
        (["--spectral-norm", "fc1", "--store-ema"], "`--store-ema` must not be given with `--spectral-norm`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: list[str], words: str, data: Path, tmp_path: Path):
    done = train(data, tmp_path, *QUIET, *budget(5), *options, ok=False)
    assert_refused(done, words, reasons=1 + ("--pipelined" in options))  # which also has nothing to start from


def test_a_damaged_norm_is_refused(trained: Path, tmp_path: Path):
    state = load(trained / "checkpoint_last.pt")
    del state["model"]["encoder.layers.0.fc1.parametrizations.weight.1.scale"]
    torch.save(state, tmp_path / "damaged.pt")
    done = prune(tmp_path / "damaged.pt", tmp_path / "small.pt", ok=False)
    assert_refused(done, "the checkpoint's spectral norm of encoder.layers.0.fc1 must have")
