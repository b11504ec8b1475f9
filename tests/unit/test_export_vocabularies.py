"""Words that pass as text: CTranslate2 knows a word by its text alone, fairseq by its number. Any dictionary of fairseq, the odd
ones too, gives a model that translates the same, or is refused before anything runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checked import served

from fairseq_dsp.errors import Refusal
from fairseq_dsp.export import ctranslate2 as conversion
from fairseq_dsp.export.ctranslate2 import convert

api = pytest.importorskip("ctranslate2")

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = str(GOLDEN / "rewritten.pt")
PAIR = ("qar", "qte")
WORD = 21  # of both dictionaries, and of some of the stored sentences
OVERWRITE = "#fairseq:overwrite"


def entries(language: str) -> list[str]:
    """The lines of a stored dictionary; word n is line n - 4."""
    return (GOLDEN / f"dict.{language}.txt").read_text().splitlines()


def folder_with(folder: Path, changes: dict[str, dict[int, str]]) -> str:
    """A data folder of the stored dictionaries, with some lines replaced: by language, number of the word -> line."""
    for language in PAIR:
        lines = entries(language)
        for number, line in changes.get(language, {}).items():
            lines[number - 4] = line
        (folder / f"dict.{language}.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"train.qar-qte.{language}.idx").touch()  # tells the languages
    return str(folder)


def renamed(language: str, text: str, new: str) -> str:
    """Text of the stored corpus in which word 21 has another name."""
    old = entries(language)[WORD - 4].split()[0]
    return " ".join(new if word == old else word for word in text.split(" "))


def sources() -> list[str]:
    return (GOLDEN / "source.txt").read_text().splitlines()


def translated(folder: Path, texts: list[str]) -> list[str]:
    translator = api.Translator(str(folder), compute_type="float32", intra_threads=1)
    found = translator.translate_batch([text.split() for text in texts], beam_size=5, max_decoding_length=50)
    return [" ".join(result.hypotheses[0]) for result in found]


def vocabularies(folder: Path) -> list[list[str]]:
    return [json.loads((folder / f"{side}_vocabulary.json").read_text()) for side in ("source", "target")]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Translations of the stored sentences with the stored dictionaries."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / "data").mkdir()
    convert(MODEL, served(folder / "out"), folder_with(folder / "data", {}))
    found = translated(folder / "out", sources())
    assert any(renamed("qte", text, "?") != text for text in found)  # or nothing here would be tried
    return found


@pytest.mark.parametrize("name", ["<blank>", "<pad>", "a\u00a0b", "<PAD>"])
@pytest.mark.parametrize("languages", [PAIR[:1], PAIR[1:], PAIR], ids="-".join)
def test_any_name_of_a_word_gives_the_same_translations(name, languages, usual, tmp_path: Path):
    line = f"{name} 9 {OVERWRITE}" if name == "<pad>" else f"{name} 9"
    (tmp_path / "data").mkdir()
    convert(MODEL, served(tmp_path / "out"), folder_with(tmp_path / "data", dict.fromkeys(languages, {WORD: line})))
    texts = [renamed("qar", text, name) if "qar" in languages else text for text in sources()]
    expected = [renamed("qte", text, name) if "qte" in languages else text for text in usual]
    # not by a string of words: this name is one
    assert [text.split(" ") for text in translated(tmp_path / "out", texts)] == [text.split(" ") for text in expected]
    for words in vocabularies(tmp_path / "out"):
        assert len(set(words)) == len(words)


def test_padding_has_a_name_that_no_word_has(tmp_path: Path):
    changes = {"qar": {WORD: "<blank> 9", 30: f"<pad> 9 {OVERWRITE}"}, "qte": {7: "<blank>_1 9"}}
    (tmp_path / "data").mkdir()
    convert(MODEL, served(tmp_path / "out"), folder_with(tmp_path / "data", changes))
    source, target = vocabularies(tmp_path / "out")
    assert source[1] == target[1]
    assert source[1] not in source[2:] + target[2:]
    assert (source[WORD], source[30], target[7]) == ("<blank>", "<pad>", "<blank>_1")


def test_usual_dictionaries_keep_the_names_they_had(tmp_path: Path):
    (tmp_path / "data").mkdir()
    convert(MODEL, served(tmp_path / "out"), folder_with(tmp_path / "data", {}))
    for language, words in zip(PAIR, vocabularies(tmp_path / "out"), strict=True):
        assert words == ["<s>", "<blank>", "</s>", "<unk>", *(line.rpartition(" ")[0] for line in entries(language))]


def refusal(folder: Path, changes: dict[str, dict[int, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said; nothing may have been built, and nothing lies there."""
    monkeypatch.setattr(conversion, "build_spec", lambda *_: pytest.fail("a model was built"))
    (folder / "data").mkdir()
    with pytest.raises(Refusal) as caught:
        convert(MODEL, served(folder / "out"), folder_with(folder / "data", changes))
    assert [path.name for path in folder.iterdir()] == ["data"]
    return str(caught.value)


@pytest.mark.parametrize("word", ["<s>", "</s>", "<unk>", "hube"])
def test_two_words_of_one_name_are_refused_by_name_and_number_before_anything_runs(word, tmp_path, monkeypatch):
    said = refusal(tmp_path, {"qte": {WORD: f"{word} 9 {OVERWRITE}"}}, monkeypatch)
    first = {"<s>": 0, "</s>": 2, "<unk>": 3}.get(word, [line.split()[0] for line in entries("qte")].index("hube") + 4)
    assert said.startswith("`--data` must ")
    assert f"the decoder's dictionary has {word} as words {first} and {WORD}" in said
    assert len(said.splitlines()) == 1


def test_both_dictionaries_are_told_at_once_and_not_every_word_of_many(tmp_path, monkeypatch):
    first = entries("qar")[0].split()[0]
    changes = {
        "qar": dict.fromkeys((21, 22), f"{first} 9 {OVERWRITE}"),
        "qte": {number: f"{entries('qte')[number - 30].split()[0]} 9 {OVERWRITE}" for number in range(30, 40)},
    }
    said = refusal(tmp_path, changes, monkeypatch).splitlines()
    assert len(said) == 2
    assert f"the encoder's dictionary has {first} as words 4, 21 and 22" in said[0]
    assert "the decoder's" in said[1]
    assert "and 7 more" in said[1]
