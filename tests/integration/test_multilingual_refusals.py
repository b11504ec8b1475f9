"""What `--task translation_multi_simple_epoch_dsp` cannot work with: one sentence each, and nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PRUNE, QUIET, assert_refused, budget, load, run, train
from languages import LANGUAGES, PAIRS, TASK, TOKENS, generate_pair, train_languages

K = budget(5)


def refused(data: Path, folder: Path, *extra: Any, words: tuple[str, ...], reasons: int = 1, **parts: Any) -> None:
    done = train_languages(data, folder / "save", *K, "--max-update", 1, *extra, ok=False, **parts)
    assert_refused(done, *words, reasons=reasons)
    assert not list((folder / "save").glob("*.pt")) or "--restore-file" in extra


@pytest.fixture
def folder(several: Path, tmp_path: Path) -> Path:
    """A copy of the data folder, to be spoilt."""
    return Path(shutil.copytree(several, tmp_path / "bin"))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--lang-pairs", "qar-qte,qar-xx"], ("`--langs`", "xx is not in qte,qar,qos")),
        (["--lang-pairs", "qar-qte,qte-qos"], ("`--lang-pairs`", "(qar-qos, qar-qte), but qte-qos is none")),
        (["--lang-pairs", "qar-qte,qar-qte"], ("`--lang-pairs`", "each once")),
        (["--lang-pairs", "qar"], ("`--lang-pairs`", "but is qar")),
        (["--langs", "qar,qos"], ("`--langs`", "qte is not in qar,qos")),
        (["--enable-lang-ids"], ("`--enable-lang-ids`",)),
        (["--best-checkpoint-metric", "bleu_worst"], ("`--best-checkpoint-metric bleu_worst` needs `--eval-bleu`",)),
        (
            ["--best-checkpoint-metric", "loss_qar-xx"],
            ("`--best-checkpoint-metric`", "loss_worst", "but is loss_qar-xx"),
        ),
        (
            ["--max-valid-steps", 2],
            ("`--max-valid-steps` must not be given", "one language pair after the other", "is 2"),
        ),
        (["--source-dict", "nowhere"], ("`--source-dict`", "nowhere is no file")),
        (["--lang-dict", "nowhere"], ("`--langs` and `--lang-dict`",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_options(extra, words, several, tmp_path):
    refused(several, tmp_path, *extra, words=words)


@pytest.mark.parametrize("task", ["multilingual_translation", "translation_multi_simple_epoch"])
def test_other_tasks_of_several_pairs_are_told_which_one_to_take(task, several, tmp_path):
    options = LANGUAGES[:2] if task == "multilingual_translation" else [*LANGUAGES, *TOKENS]
    extra = [*options, "--head-selection", "dsp", "--max-update", 1]
    done = train(several, tmp_path / "save", *extra, ok=False, task=task)
    assert done.code == 2
    assert f"`--task` must be {TASK}" in "\n".join(done.refusals)
    assert task != "multilingual_translation" or len(done.refusals) == 1
    assert not list((tmp_path / "save").glob("*"))


@pytest.mark.parametrize("command", ["prune", "score"])
def test_a_checkpoint_with_a_model_a_pair_is_refused_by_the_name_of_the_other_task(command, dense, tmp_path):
    state = load(dense)
    vars(state["cfg"]["model"])["arch"] = vars(state["cfg"]["model"])["_name"] = "multilingual_transformer_iwslt_de_en"
    torch.save(state, tmp_path / "other.pt")
    arguments = {
        "prune": [tmp_path / "other.pt", tmp_path / "out"],
        "score": ["--path", tmp_path / "other.pt", "--scorer", "magnitude", "--output", tmp_path / "out"],
    }
    done = run(f"fairseq_dsp.cli.{command}", *arguments[command], folder=tmp_path)
    assert_refused(done, "`--task translation_multi_simple_epoch`", "is of multilingual_transformer_iwslt_de_en")
    assert not (tmp_path / "out").exists()


def test_folders_that_lack_something(folder, tmp_path):
    pair = PAIRS[1]
    for side in pair.split("-"):
        for ending in ("bin", "idx"):
            (folder / f"valid.{pair}.{side}.{ending}").rename(folder / f"other.{pair}.{side}.{ending}")
    refused(folder, tmp_path, words=(f"must hold valid of every language pair, but has none of {pair}",))
    train_languages(folder, tmp_path / "unvalidated", *QUIET, *K, "--max-update", 1)
    (folder / "dict.qte.txt").unlink()
    refused(folder, tmp_path, words=("no dict.qte.txt",))
    (folder / "dict.qte.txt").write_text("other 3\n")
    refused(folder, tmp_path, words=("one dictionary for all languages of a side", "qos and qte differ"))
    refused(tmp_path / "none", tmp_path, words=("must be a folder of fairseq-preprocess",))


@pytest.mark.parametrize("subset", ["train", "valid"])
def test_an_empty_pair(subset, folder, tmp_path):
    from commands import PREPROCESS

    for side in ("qar", "qte"):
        (tmp_path / f"empty.{side}").write_text("")
    arguments = ["-s", "qar", "-t", "qte", "--destdir", tmp_path / "empty", "--workers", 1, f"--{subset}pref"]
    arguments += [tmp_path / "empty", "--srcdict", folder / "dict.qar.txt", "--tgtdict", folder / "dict.qar.txt"]
    assert run(PREPROCESS, *arguments, folder=tmp_path).code == 0
    for path in (tmp_path / "empty").glob(f"{subset}.*"):
        shutil.copy(path, folder)
    refused(folder, tmp_path, words=(f"{subset} of qar-qte is empty",))


def test_languages_in_another_order_or_other_tokens_than_at_training(
    several, multilingual, multilingual_trained, tmp_path
):
    other, fewer = ["--langs", "qar,qte,qos"], ["--langs", "qar,qte,qos,xx"]
    start = ["--finetune-from-model", multilingual]
    refused(several, tmp_path, *start, *other, words=("`--langs` must be qte,qar,qos", "in another order"))
    refused(several, tmp_path, *start, *fewer, words=("`--langs` must be qte,qar,qos", "but is qar,qte,qos,xx"))
    words = ("`--encoder-langtok` must be tgt", "`--decoder-langtok` must be True")
    refused(several, tmp_path, *start, tokens=["--encoder-langtok", "src"], words=words, reasons=2)
    teacher = ["--teacher", multilingual]
    refused(several, tmp_path, *teacher, *other, words=(f"as `--teacher` {multilingual} was trained", "another order"))
    refused(several, tmp_path, *teacher, tokens=["--encoder-langtok", "src"], words=words, reasons=2)
    for extra, words in (
        (other, ("`--langs`", "in another order")),
        (["--encoder-langtok", "src"], ("`--encoder-langtok`",)),
    ):
        done = generate_pair(several, multilingual_trained, PAIRS[0], *extra, folder=tmp_path)
        assert_refused(done, *words)


def test_several_target_languages_that_nothing_tells_apart_are_warned_of(several, tmp_path):
    words = "should be given for several target languages (qos, qte)"
    for tokens, warned in ((["--encoder-langtok", "src"], True), (["--decoder-langtok"], False)):
        done = train_languages(several, tmp_path / tokens[0], *QUIET, *K, "--max-update", 1, tokens=tokens)
        assert (words in done.out) == warned


@pytest.mark.parametrize(
    ("who", "module", "arguments"),
    [
        (
            "`--scorer`",
            "fairseq_dsp.cli.score",
            ("{data}", "--path", "{other}", "--scorer", "gradient", "--output", "{out}"),
        ),
        ("`--rescale`", PRUNE, ("{other}", "{out}", "--layout", "{layout}", "--rescale", "{data}")),
        (
            "fairseq-dsp-train-scorer",
            "fairseq_dsp.cli.train_scorer",
            ("{data}", "--path", "{other}", "--output", "{out}"),
        ),
        (
            "`--data`",
            "fairseq_dsp.cli.bench",
            ("--path", "{other}", "--data", "{data}", "--workloads", "generate", "--cpu", "--json", "{out}"),
        ),
        (
            "`--format ctranslate2`",
            "fairseq_dsp.cli.export",
            ("--format", "ctranslate2", "{other}", "{out}", "--data", "{data}"),
        ),
    ],
    ids=["score", "rescale", "train-scorer", "bench", "export"],
)
def test_sentences_of_a_task_that_is_not_known_are_never_guessed(who, module, arguments, data, dense, tmp_path):
    state = load(dense)
    state["cfg"]["task"]["_name"] = "denoising"
    torch.save(state, tmp_path / "other.pt")
    names = {
        "data": data, "other": tmp_path / "other.pt", "out": tmp_path / "out",
        "layout": "enc:10.11/dec:11.01/cross:10.11",
    }  # fmt: skip
    done = run(module, *(word.format(**names) for word in arguments), folder=tmp_path)
    assert_refused(done, f"{who}", "needs a model of the task", "but it is denoising.")
    assert not (tmp_path / "out").exists()
