"""`DataFolder`: which languages, which words, and every damage found before fairseq stumbles over it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from hypothesis import given
from hypothesis import strategies as st

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import DataFolder

SENTENCES = [[4, 5, 2], [6, 2], [4, 4, 7, 2]]
IMPLEMENTATIONS = ["mmap", "cached", "lazy", "raw"]


def write_side(
    folder: Path, subset: str, pair: str, language: str, sentences: list[list[int]], impl: str = "mmap"
) -> None:
    prefix = str(folder / f"{subset}.{pair}.{language}")
    if impl == "raw":  # the end of a sentence is no word of the text
        text = "".join(" ".join("abcd"[word - 4] for word in sentence[:-1]) + "\n" for sentence in sentences)
        Path(prefix).write_text(text)
        return
    builder = make_builder(f"{prefix}.bin", impl=impl, vocab_size=8)
    for sentence in sentences:
        builder.add_item(torch.IntTensor(sentence))
    builder.finalize(f"{prefix}.idx")


def write_folder(folder: Path, *pairs: tuple[str, str], impl: str = "mmap") -> Path:
    """Three sentence pairs of 4 words and fairseq's 4 symbols, in every subset and language pair."""
    folder.mkdir(exist_ok=True)
    dictionary = Dictionary()
    for word in "abcd":
        dictionary.add_symbol(word)
    for pair in pairs:
        for language in pair:
            dictionary.save(str(folder / f"dict.{language}.txt"))
            for subset in ("train", "valid", "test"):
                write_side(folder, subset, "-".join(pair), language, SENTENCES, impl)
    return folder


class TestLanguages:
    @pytest.mark.parametrize("asked", [(None, None), ("de", None), (None, "zh-CN"), ("de", "zh-CN")])
    def test_are_those_of_the_only_pair(self, asked, tmp_path: Path):
        found = DataFolder(str(write_folder(tmp_path, ("de", "zh-CN"))), *asked)
        assert (found.source, found.target) == ("de", "zh-CN")

    def test_that_are_both_given_may_be_of_the_opposite_direction(self, tmp_path: Path):
        found = DataFolder(str(write_folder(tmp_path, ("de", "en"))), "en", "de")
        assert found.sizes("train").tolist() == [[3, 3], [2, 2], [4, 4]]

    @pytest.mark.parametrize(
        ("asked", "words"), [((None, None), "?-?"), (("de", None), "de-?"), ((None, "it"), "?-it")]
    )
    def test_that_are_of_several_pairs_or_of_none_are_refused(self, asked, words, tmp_path: Path):
        with pytest.raises(Refusal, match="must name one of the language pairs") as refusal:
            DataFolder(str(write_folder(tmp_path, ("de", "en"), ("de", "fr"))), *asked)
        assert "(de-en, de-fr)" in str(refusal.value)
        assert words in str(refusal.value)

    def test_of_no_folder_and_of_an_empty_one_are_refused(self, tmp_path: Path):
        for path, words in ((tmp_path / "none", "is none"), (tmp_path, "holds no train.SRC-TGT.SRC.idx")):
            with pytest.raises(Refusal, match=f"DATA must be a folder of fairseq-preprocess, but .*{words}"):
                DataFolder(str(path), name="DATA")


class TestDictionaries:
    def test_are_both_read(self, tmp_path: Path):
        found = DataFolder(str(write_folder(tmp_path, ("de", "en")))).dictionaries()
        assert [dictionary.symbols[4:] for dictionary in found] == [list("abcd")] * 2

    @pytest.mark.parametrize("content", [b"xx\n", b"a b c\n", b"\xff\xfe 3\n", b"a 1\na 1\n"])
    def test_that_are_none_of_fairseqs_are_refused_with_all_that_are_missing(self, content: bytes, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"))))
        (tmp_path / "dict.de.txt").write_bytes(content)
        (tmp_path / "dict.en.txt").unlink()
        with pytest.raises(Refusal) as refusal:
            folder.dictionaries()
        assert len(refusal.value.reasons) == 2
        assert "dict.de.txt must be a dictionary of fairseq" in refusal.value.reasons[0]
        assert "has no dict.en.txt" in refusal.value.reasons[1]


class TestSizes:
    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_are_the_tokens_of_every_pair(self, impl: str, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"), impl=impl)))
        assert np.array_equal(folder.sizes("valid", (8, 8)), [[3, 3], [2, 2], [4, 4]])

    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_of_an_empty_set_are_none(self, impl: str, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"), impl=impl)))
        for language in ("de", "en"):
            write_side(tmp_path, "valid", "de-en", language, [], impl)
        assert folder.sizes("valid", (8, 8)).shape == (0, 2)

    def test_of_an_older_format_that_is_cut_or_foreign_are_refused(self, tmp_path: Path):
        """fairseq reads memory that nobody has written to where it is cut."""
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"), impl="cached")))
        with pytest.raises(Refusal, match="it has word 7 of a dictionary of 7"):
            folder.sizes("test", (7, 8))
        os.truncate(tmp_path / "valid.de-en.en.bin", 5)
        with pytest.raises(Refusal, match=r"valid\.de-en\.en cannot be read: its words are not as many"):
            folder.sizes("valid")

    def test_of_text_that_is_none_are_refused(self, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"), impl="raw")))
        (tmp_path / "valid.de-en.de").write_bytes(b"\xff\xfe\n")
        with pytest.raises(Refusal, match=r"valid\.de-en\.de cannot be read"):
            folder.sizes("valid")

    @given(kind=st.sampled_from(["idx", "bin"]), data=st.data())
    def test_of_a_file_of_another_length_are_refused(self, kind: str, data: st.DataObject, tmp_path_factory):
        path = write_folder(tmp_path_factory.mktemp("cut"), ("de", "en"))
        file = path / f"train.de-en.en.{kind}"
        length = data.draw(st.integers(0, 2 * file.stat().st_size).filter(lambda size: size != file.stat().st_size))
        os.truncate(file, length)
        folder = DataFolder(str(path))
        with pytest.raises(Refusal, match=r"must hold whole data sets, but .*train\.de-en\.en cannot be read"):
            folder.sizes("train")
        assert len(folder.sizes("valid")) == 3

    def test_of_what_is_missing_or_unequal_or_foreign_are_refused(self, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"))))
        (tmp_path / "train.de-en.de.idx").unlink()
        (tmp_path / "train.de-en.en.bin").unlink()
        with pytest.raises(Refusal) as refusal:
            folder.sizes("train")
        assert [word in str(refusal.value) for word in ("train.de-en.de.idx", "train.de-en.en.bin")] == [True, True]
        write_side(tmp_path, "valid", "de-en", "en", SENTENCES[:2])
        with pytest.raises(Refusal, match="as many sentences in both languages, but valid of .* has 3 and 2"):
            folder.sizes("valid")
        (tmp_path / "valid.de-en.en.idx").write_bytes(b"x" * 62)
        with pytest.raises(Refusal, match="its index does not begin as one"):
            folder.sizes("valid")

    def test_of_words_that_the_dictionary_lacks_are_refused(self, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"))))
        with pytest.raises(Refusal, match="it has word 7 of a dictionary of 7"):
            folder.sizes("test", (8, 7))


class TestSides:
    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_are_the_sentences(self, impl: str, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"), impl=impl)))
        for side in folder.sides("test", (8, 8)):
            assert [side[index].tolist() for index in range(len(side))] == SENTENCES

    def test_of_a_damaged_set_are_refused(self, tmp_path: Path):
        folder = DataFolder(str(write_folder(tmp_path, ("de", "en"))))
        os.truncate(tmp_path / "test.de-en.en.bin", 3)
        with pytest.raises(Refusal, match="must hold whole data sets"):
            folder.sides("test")


class TestSeveral:
    """Of folders with colons between, and of parts called train1, train2, …: what fairseq-train reads."""

    def write(self, path: Path) -> DataFolder:
        write_folder(path / "one", ("de", "en"))
        write_folder(path / "two", ("de", "en"), impl="raw")
        for language in ("de", "en"):
            write_side(path / "two", "train", "de-en", language, [[7, 2]], "raw")
            for part, count in (("train1", 2), ("valid1", 2)):
                write_side(path / "one", part, "de-en", language, SENTENCES[:count])
            write_side(
                path / "one", "train2", "de-en", language, SENTENCES, "raw"
            )  # text among others: not for fairseq
        return DataFolder(f"{path / 'one'}{os.pathsep}{path / 'two'}", name="DATA")

    def test_have_all_of_the_training_set_and_the_other_sets_of_the_first(self, tmp_path: Path):
        folder = self.write(tmp_path)
        for name, sentences in (("train", [*SENTENCES, *SENTENCES[:2], [7, 2]]), ("valid", SENTENCES)):
            assert folder.sizes(name, (8, 8)).tolist() == [[len(each)] * 2 for each in sentences]
            for side in folder.sides(name):
                assert [side[index].tolist() for index in range(len(side))] == sentences
                assert list(side.sizes) == list(map(len, sentences))
        assert [os.path.basename(file) for file in folder.files("train")] == [
            "train.de-en.de.bin", "train.de-en.en.bin", "train1.de-en.de.bin", "train1.de-en.en.bin", "train.de-en.de",
            "train.de-en.en",
        ]  # fmt: skip

    def test_are_refused_for_every_folder_and_part_that_is_wrong(self, tmp_path: Path):
        folder = self.write(tmp_path)
        os.truncate(tmp_path / "one/train1.de-en.en.bin", 1)
        (tmp_path / "two/train.de-en.de").unlink()
        with pytest.raises(Refusal) as refusal:
            folder.sizes("train")
        assert [word in str(refusal.value) for word in ("train1.de-en.en", f"{tmp_path / 'two'} lacks")] == [True] * 2
        with pytest.raises(Refusal) as refusal:
            DataFolder(f"{tmp_path / 'one'}:{tmp_path / 'none'}:{tmp_path / 'neither'}")
        assert len(refusal.value.reasons) == 2
