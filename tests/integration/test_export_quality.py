"""What quantising does to translations of real sentences, and the verdict on it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from checked import served
from commands import PREPROCESS, run

from fairseq_dsp.cli.export import main
from fairseq_dsp.export import ctranslate2 as conversion
from fairseq_dsp.export.ctranslate2 import convert
from fairseq_dsp.export.quality import Effect, compare, evenly

api = pytest.importorskip("ctranslate2")

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = str(GOLDEN / "rewritten.pt")


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(50)}" for _ in range(draw.randint(5, 12))) for _ in range(count)]


def with_errors(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with a share of their words replaced."""
    draw = random.Random(seed)
    return [" ".join("other" if draw.random() < share else word for word in line.split()) for line in lines]


def test_translations_that_stay_the_same_are_good():
    found = compare(sentences(60), sentences(60), sentences(60, seed=1))
    assert (found.sentences, found.same, found.good) == (60, 60, True)
    assert str(found).startswith("good: all 60")


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_too_few_sentences_are_called_neither(share: float):
    found = compare(sentences(49), with_errors(sentences(49), share, 1), sentences(49))
    assert found.good is None
    assert "49" in str(found)
    assert "fewer than 50, too few to judge" in str(found)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_translations_that_got_worse_are_not_good(share: float):
    references = sentences(60)
    found = compare(with_errors(references, 0.05, 1), with_errors(references, share, 2), references)
    assert not found.good
    assert found.quantized_bleu < found.bleu
    assert found.p_value is not None
    assert found.p_value < 0.05
    assert "not good" in str(found)


def test_differences_as_large_as_chance_s_are_good_whichever_is_better():
    references = sentences(60)
    one, other = (with_errors(references, 0.2, seed) for seed in (1, 2))
    for found in (compare(one, other, references), compare(other, one, references)):
        assert found.same < 60
        assert found.p_value is not None
        assert found.p_value >= 0.05
        assert found.good
        assert "not good" not in str(found)


def test_what_got_better_is_good_however_sure():
    assert Effect("valid", 100, 3, bleu=20.0, quantized_bleu=25.0, p_value=0.001).good


def test_a_scores_sentence_has_both_scores_and_their_number():
    said = str(Effect("valid", 100, 93, bleu=20.04, quantized_bleu=19.96, p_value=0.31))
    for words in ("93 of 100", "valid", "20.0", "20.0 in float32", "p = 0.31", "good"):
        assert words in said


@pytest.mark.parametrize(("count", "most"), [(0, 3), (2, 3), (3, 3), (10, 3), (7283, 200)])
def test_sentences_are_taken_evenly(count: int, most: int):
    found = evenly(list(range(count)), most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))
    steps = {b - a for a, b in zip(found, found[1:], strict=False)}
    assert not steps or max(steps) - min(steps) <= 1


WORDS = [line.split()[0] for line in (GOLDEN / "dict.qar.txt").read_text().splitlines()[:100]]


def bare(folder: Path) -> Path:
    """A data folder of the stored dictionaries alone."""
    folder.mkdir()
    for language in ("qar", "qte"):
        (folder / f"dict.{language}.txt").write_text((GOLDEN / f"dict.{language}.txt").read_text())
        (folder / f"train.qar-qte.{language}.idx").touch()  # tells the languages
    return folder


def exported(folder: Path) -> Any:
    """CTranslate2's translator of the stored model, in float32."""
    convert(MODEL, served(folder / "float32"), str(bare(folder / "bare")))
    return api.Translator(str(folder / "float32"), compute_type="float32", intra_threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose valid set are sentences and translations that the stored model finds, one too long for any model."""
    folder = tmp_path_factory.mktemp("real")
    translator = exported(folder)
    for subset, more in (("train", ""), ("valid", "rori " * 3000 + "\n")):
        lines = [" ".join(random.Random(f"{subset} {n}").sample(WORDS, 7)) for n in range(60)]
        found = translator.translate_batch([line.split() for line in lines], beam_size=5, max_decoding_length=20)
        texts = [" ".join(each.hypotheses[0]) for each in found]
        (folder / f"{subset}.qar").write_text("".join(f"{line}\n" for line in lines) + more)
        (folder / f"{subset}.qte").write_text("".join(f"{text}\n" for text in texts) + more)
    arguments: list[object] = ["-s", "qar", "-t", "qte", "--destdir", folder / "bin", "--workers", 1]
    for subset in ("train", "valid"):
        arguments += [f"--{subset}pref", folder / subset]
    for side, language in (("src", "qar"), ("tgt", "qte")):
        arguments += [f"--{side}dict", GOLDEN / f"dict.{language}.txt"]
    done = run(PREPROCESS, *arguments, folder=folder)
    assert done.code == 0, done.err
    return folder / "bin"


def export(target: Path, data: Path, quantization: str = "int8") -> None:
    main([MODEL, str(target), "--format", "ctranslate2", "--data", str(data), "--quantization", quantization])


@pytest.mark.parametrize("quantization", ["int8", "bfloat16"])
def test_the_command_says_it_of_the_data_s_sentences(quantization, folder, tmp_path, capsys):
    export(tmp_path / "out", folder, quantization)
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"with {quantization}" in said
    assert re.search(r"real sentences: (not )?good.* (all|of) 60 translations of valid stay the same$", said)


def test_the_command_says_of_a_spoilt_model_that_it_is_not_good(folder, tmp_path, capsys, monkeypatch):
    save = conversion._save

    def spoilt(spec, target, quantization):
        if quantization:
            for layer in spec.decoder.layer:
                layer.ffn.linear_1.weight = layer.ffn.linear_1.weight * -1
        save(spec, target, quantization)

    monkeypatch.setattr(conversion, "_save", spoilt)
    export(tmp_path / "out", folder)
    assert "not good" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "out/model.bin").is_file()


def test_without_real_sentences_nothing_is_called_good(tmp_path, capsys):
    export(tmp_path / "out", bare(tmp_path / "bare"))
    said = capsys.readouterr().out.splitlines()[-1]
    assert "not known" in said
    assert "valid" in said
    assert "good" not in said
