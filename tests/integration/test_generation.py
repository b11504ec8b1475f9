"""Translating: a trained checkpoint as it is, the rewritten one, ensembles, alignment; all by plain fairseq commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import INTERACTIVE, PLUGIN, ROOT, VALIDATE, assert_refused, generate, prune, prune_to_each, run
from fairseq import hub_utils

from fairseq_dsp.plugin.model import DspTransformerModel

FULL = "enc:11.11/dec:11.11/cross:11.11"
LAYOUTS = {
    "uneven": "enc:10.00/dec:11.01/cross:00.10",
    "last cross empty": "enc:11.01/dec:00.10/cross:01.00",
    "no cross": "enc:11.11/dec:11.11/cross:00.00",
    "nothing": "enc:00.00/dec:00.00/cross:00.00",
}


@pytest.fixture(scope="module")
def raw(corpus: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test set as text, with a word that the dictionary lacks, for --dataset-impl raw."""
    folder = tmp_path_factory.mktemp("raw")
    for side in ("aa", "bb"):
        (folder / f"dict.{side}.txt").write_text((data / f"dict.{side}.txt").read_text())
        lines = (corpus / f"test.{side}").read_text().splitlines()
        (folder / f"test.aa-bb.{side}").write_text("".join(f"{line} {side}nie\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dense checkpoint rewritten to each of the layouts."""
    return prune_to_each(dense, LAYOUTS, tmp_path_factory.mktemp("small"))


def interactive(data: Path, path: Path, text: str, folder: Path, *extra: object):
    arguments = [data, *PLUGIN, "--path", path, "--beam", 3, "--max-len-b", 15, "--cpu", *extra]
    done = run(INTERACTIVE, *arguments, folder=folder, stdin=text)
    assert done.code == 0, done.err
    return done


def assert_same(one, other) -> None:
    assert sorted(one.hypotheses()) == list(range(37))
    assert one.hypotheses() == other.hypotheses()
    assert one.scores() == pytest.approx(other.scores(), abs=1e-5)


def test_a_checkpoint_that_is_not_rewritten_translates_with_its_chosen_heads_and_not_densely(
    trained: Path, pruned: Path, data: Path, tmp_path: Path
):
    masked = generate(data, trained, folder=tmp_path)
    assert_same(generate(data, pruned, folder=tmp_path), masked)
    prune(trained, tmp_path / "all.pt", "--layout", FULL)
    dense = generate(data, tmp_path / "all.pt", folder=tmp_path)
    assert dense.scores() != pytest.approx(masked.scores(), abs=1e-3)
    assert dense.hypotheses() != masked.hypotheses()


def test_every_sentence_has_a_hypothesis_and_they_are_not_all_the_same(pruned: Path, data: Path, tmp_path: Path):
    hypotheses = generate(data, pruned, folder=tmp_path).hypotheses()
    assert sorted(hypotheses) == list(range(37))
    assert len(set(hypotheses.values())) > 5


def test_interactive_says_what_generate_says(trained: Path, pruned: Path, corpus: Path, data: Path, tmp_path: Path):
    text = (corpus / "test.aa").read_text()
    expected = generate(data, pruned, "--batch-size", 1, folder=tmp_path).hypotheses()
    for path in (trained, pruned):
        assert interactive(data, path, text, tmp_path, "--buffer-size", 37).hypotheses() == expected


def test_from_pretrained_says_what_interactive_says(pruned: Path, trained: Path, data: Path, tmp_path: Path):
    for path in (pruned, trained):
        hub = DspTransformerModel.from_pretrained(str(path.parent), path.name, data_name_or_path=str(data))
        (expected,) = interactive(data, path, "a3 a1 a7\n", tmp_path).hypotheses().values()
        assert hub.translate("a3 a1 a7", beam=3, max_len_b=15) == expected
        assert hub.models[0].head_gates is None


@pytest.mark.parametrize("way", ["import", "user_dir", "neither"])
def test_python_needs_the_plug_in_before_a_checkpoint_as_the_readme_says(
    way: str, pruned: Path, data: Path, tmp_path: Path
):
    plug_in = f", user_dir={str(ROOT / 'fairseq_dsp')!r}" if way == "user_dir" else ""
    program = ["import fairseq_dsp"] if way == "import" else []
    program += ["from fairseq.models.transformer import TransformerModel"]
    program += [
        f"hub = TransformerModel.from_pretrained({str(pruned.parent)!r}, {pruned.name!r}, {str(data)!r}{plug_in})"
    ]
    program += ["print('said', hub.translate('a3 a1 a7', beam=3, max_len_b=15))"]
    # a new process, into which nothing has imported the plug-in yet
    done = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, cwd=tmp_path)
    (expected,) = interactive(data, pruned, "a3 a1 a7\n", tmp_path).hypotheses().values()
    assert (done.returncode == 0) == (way != "neither"), done.stderr[-2000:]
    assert done.stdout.splitlines() == ([f"said {expected}"] if way != "neither" else [])
    readme = " ".join((ROOT / "docs/checkpoints.md").read_text().split())
    assert "`import fairseq_dsp` before" in readme
    assert "`user_dir=`" in readme


def test_the_hub_loads_a_rewritten_checkpoint_by_itself(pruned: Path, data: Path):
    loaded = hub_utils.from_pretrained(str(pruned.parent), pruned.name, str(data))
    assert loaded["models"][0].layout.count == 5


def test_fairseq_validate_sees_the_same_loss_in_both(trained: Path, pruned: Path, data: Path, tmp_path: Path):
    losses = []
    for path, task in ((trained, "translation_dsp"), (trained, "translation"), (pruned, "translation")):
        arguments = [
            data,
            *PLUGIN,
            "--task",
            task,
            "--path",
            path,
            "--batch-size",
            37,
            "--required-batch-size-multiple",
            1,
            "--cpu",
        ]
        done = run(VALIDATE, *arguments, "--num-workers", 0, folder=tmp_path)
        assert done.code == 0, done.err
        losses.append(done.logged("loss", "valid"))
    assert len(losses[0]) == 1
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("options", [["--beam", 1], ["--nbest", 3], ["--fp16"], ["--sampling", "--beam", 1], []])
def test_rewritten_checkpoints_of_any_layout_translate_every_sentence(
    options: list, small: dict[str, Path], data: Path, tmp_path: Path
):
    for path in [small["uneven"]] if options else small.values():
        done = generate(data, path, *options, folder=tmp_path)
        assert sorted(done.hypotheses()) == list(range(37))


def test_ensembles_of_different_layouts_and_of_masked_with_rewritten_ones(
    trained: Path, pruned: Path, small: dict[str, Path], data: Path, tmp_path: Path
):
    one = generate(data, f"{pruned}:{small['uneven']}", folder=tmp_path)
    other = generate(data, f"{trained}:{small['uneven']}", folder=tmp_path)
    assert_same(one, other)
    assert one.scores() != generate(data, pruned, folder=tmp_path).scores()
    with_dense = generate(data, f"{pruned}:{small['nothing']}", folder=tmp_path)
    assert sorted(with_dense.hypotheses()) == list(range(37))


@pytest.mark.parametrize("name", ["uneven", "last cross empty"])
def test_alignment_comes_from_the_last_layer_that_has_a_cross_head(
    name: str, small: dict[str, Path], data: Path, tmp_path: Path
):
    done = generate(data, small[name], "--print-alignment", "hard", folder=tmp_path)
    alignments = [line.split("\t")[1] for line in done.out.splitlines() if line.startswith("A-")]
    assert len(alignments) == 37
    assert any("-" in line for line in alignments)


def test_alignment_of_a_masked_checkpoint_is_that_of_the_rewritten_one(
    trained: Path, pruned: Path, data: Path, tmp_path: Path
):
    if "cross:00.00" in generate(data, pruned, folder=tmp_path).out:
        pytest.skip("this training kept no cross head")
    one, other = (generate(data, path, "--print-alignment", "soft", folder=tmp_path) for path in (trained, pruned))
    lines = [[line for line in done.out.splitlines() if line.startswith("A-")] for done in (one, other)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 37


@pytest.mark.parametrize("name", ["uneven", "last cross empty"])
def test_unknown_words_are_replaced(name: str, small: dict[str, Path], raw: Path, tmp_path: Path):
    (tmp_path / "words").write_text("aanie niemand\n")
    options = [
        "--replace-unk",
        tmp_path / "words",
        "--dataset-impl",
        "raw",
        "--source-lang",
        "aa",
        "--target-lang",
        "bb",
    ]
    done = generate(raw, small[name], *options, folder=tmp_path)
    assert len(done.hypotheses()) == 37


@pytest.mark.parametrize("option", ["--print-alignment", "--replace-unk"])
def test_alignment_without_any_cross_head_is_one_sentence(
    option: str, small: dict[str, Path], raw: Path, tmp_path: Path
):
    options = [option, "--dataset-impl", "raw", "--source-lang", "aa", "--target-lang", "bb"]
    done = generate(raw, small["no cross"], *options, folder=tmp_path, ok=False)
    assert_refused(done, f"`{option}`", "cross:00.00")
