"""prepare-iwslt14.sh --text-dir: what the text is called is what it is, in the report and in the data folder alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from preparing import lines, prepare, refused

FILES = [f"{subset}.{language}" for subset in ("train", "valid", "test") for language in ("de", "en")]
RAW = {
    "de": ["Das Haus ist groß.", 'Er sagt: "Ist es das?"', "Ja!"],
    "en": ["The house is big.", 'He asks: "Is it?"', "Yes!"],
}
TOKENISED = {
    "de": ["das haus ist groß .", "er sagt : &quot; ist es das ? &quot;", "ja !", "am 3. mai"],
    "en": ["the house is big .", "he asks : &quot; is it ? &quot;", "yes !", "he met dr."],
}
# raw, but with a space where French wants one; no end of a sentence that tells
OTHERS = {
    "de": ["Est-ce grand ?", "C'est grand.", "Oui, il le dit."],
    "en": ["the house", "of many rooms", "no. 3 of it"],
}


def text_in(folder: Path, **kinds: dict[str, list[str]]) -> list[object]:
    """Text of one kind for each file, tokenised where nothing is said; the options that name it."""
    folder.mkdir()
    for name in FILES:
        found = kinds.get(name.replace(".", "_"), TOKENISED)[name.rpartition(".")[2]]
        (folder / name).write_text("".join(f"{line}\n" for line in found[:3] * 5), encoding="utf-8")
    return ["--text-dir", folder, "--output", folder.parent / "out"]


def everywhere(kind: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    return {name.replace(".", "_"): kind for name in FILES}


def labels(output: Path) -> tuple[str, str]:
    """What the report says of the text, and what the data folder says."""
    (line,) = [line for line in lines(output / "text/report.txt") if line.startswith("text: ")]
    return line, json.loads((output / "data-bin/data.json").read_text())["tokenised"]


def test_raw_text_is_not_taken_for_tokenised(tmp_path: Path):
    done = prepare(*text_in(tmp_path / "text", **everywhere(RAW)), "--bpe-merges", 5)
    refused(done, "`--text-dir` must hold tokenised text", *FILES, "`--tokenised no`", "`--sentencepiece")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", ["test.en", "train.de"])
@pytest.mark.parametrize("kind", [RAW, {**OTHERS, "en": RAW["en"]}], ids=["raw", "raw with spaces"])
def test_one_raw_file_is_found(name: str, kind: dict[str, list[str]], tmp_path: Path):
    options = text_in(tmp_path / "text", **{name.replace(".", "_"): kind})
    done = prepare(*options, "--bpe-merges", 5)
    refused(done, name)
    assert not [other for other in FILES if other != name and other in done.stderr]


def test_tokenised_text_and_text_that_does_not_tell_are_called_tokenised_in_both_files(tmp_path: Path):
    options = text_in(tmp_path / "text", test_en={"en": OTHERS["en"]})
    done = prepare(*options, "--bpe-merges", 5)
    assert done.returncode == 0, done.stderr
    said, known = labels(tmp_path / "out")
    assert known == "moses"
    assert "taken as tokenised by Moses" in said


def test_whoever_says_that_text_is_not_tokenised_has_it_said_in_both_files(tmp_path: Path):
    options = text_in(tmp_path / "text", **everywhere(RAW))
    done = prepare(*options, "--bpe-merges", 5, "--tokenised", "no")
    assert done.returncode == 0, done.stderr
    said, known = labels(tmp_path / "out")
    assert known == "no"
    assert "taken as not tokenised" in said


def test_tokenised_text_is_not_taken_for_raw(tmp_path: Path):
    options = [*text_in(tmp_path / "text"), "--sentencepiece", 30]
    refused(prepare(*options), "`--text-dir` must hold text that is not tokenised", "`--tokenised moses`")
    done = prepare(*options, "--tokenised", "moses")
    assert done.returncode == 0, done.stderr
    said, known = labels(tmp_path / "out")
    assert known == "moses"
    assert "taken as tokenised by Moses" in said


def test_tokenised_takes_two_words_and_a_folder_of_text(tmp_path: Path):
    refused(
        prepare(*text_in(tmp_path / "text"), "--tokenised", "maybe"), "`--tokenised` must be moses or no, but is maybe"
    )
    refused(prepare("--output", tmp_path / "out", "--tokenised", "no"), "`--tokenised` must come with `--text-dir`")
