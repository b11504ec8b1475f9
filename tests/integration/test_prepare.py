"""prepare-iwslt14.sh: an archive of the official layout that the test writes, real text where it is at hand."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from commands import ROOT
from preparing import SCRIPT, lines, prepare, refused

DATA = Path(os.environ.get("FAIRSEQ_DSP_DATA", ROOT.parent / "shared/data"))
TALKS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
real_text = pytest.mark.skipif(
    not (DATA / "iwslt14/train.de.xz").is_file(), reason="no iwslt14 folder in FAIRSEQ_DSP_DATA"
)

sys.path.insert(0, str(SCRIPT.parent))

from reproduction.data import read_data  # noqa: E402

spec = importlib.util.spec_from_file_location("prepare_text", SCRIPT.with_name("prepare_text.py"))
assert spec is not None
assert spec.loader is not None
prepare_text = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_text)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 good pairs, one too unequal, one empty; five xml files of two segments."""
    path = tmp_path_factory.mktemp("archive") / "de-en.tgz"
    training = {}
    for language, word in (("de", "Haus"), ("en", "house")):
        text = ["<url>http://example.org/1</url>", "<keywords>talks, a</keywords>", "<talkid>1</talkid>"]
        text += [f"<title>Title, {word} {language}!</title>", f"<description>The {word} | bar.</description>"]
        text += [f'The {word} number {n}, and it\'s "good".' for n in range(68)]
        text += ["One." if language == "de" else "One two three four five six.", "" if language == "de" else "Empty."]
        training[language] = "\n".join(text) + "\n"
    with tarfile.open(path, "w:gz") as tar:
        for language, content in training.items():
            add(tar, f"de-en/train.tags.de-en.{language}", content)
            for talk in TALKS:
                body = "".join(f'<seg id="{n}"> It’s {talk}, No. {n} {language}. </seg>\n' for n in (1, 2))
                content = f'<?xml version="1.0"?>\n<doc docid="1">\n<title>No</title>\n{body}</doc>\n'
                add(tar, f"de-en/IWSLT14.{talk}.de-en.{language}.xml", content)
            add(tar, f"de-en/IWSLT14.TEDX.tst2013.de-en.{language}.xml", '<seg id="1"> another set </seg>\n')
    return path


def add(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    tar.addfile(info, io.BytesIO(text.encode()))


def test_an_archive_becomes_a_data_folder(archive: Path, tmp_path: Path):
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    done = prepare("--archive", archive, "--output", tmp_path / "out", "--bpe-merges", 30, "--sha256", checksum.upper())
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sha256 {checksum}, as asked for" in done.stdout
    assert "tokeniser: sacremoses" in done.stdout
    assert "70 of 72 pairs of the training set left" in done.stdout
    assert "pairs: 67 train, 3 valid, 10 test" in done.stdout
    plain = [line.replace("@@ ", "") for line in lines(tmp_path / "out/text/train.en")]
    assert plain[:3] == [
        "title , house en !",
        "the house &#124; bar .",
        "the house number 0 , and it &apos;s &quot; good &quot; .",
    ]
    valid = [line.replace("@@ ", "") for line in lines(tmp_path / "out/text/valid.en")]
    assert [line.split()[3] for line in valid] == ["20", "43", "66"]  # lines 23, 46 and 69
    test = [line.replace("@@ ", "") for line in lines(tmp_path / "out/text/test.de")]
    assert test == [f"it &apos; s {talk.lower()} , no. {n} de ." for talk in TALKS for n in (1, 2)]
    info = json.loads((tmp_path / "out/data-bin/data.json").read_text())
    assert info["pairs"] == {"train": 67, "valid": 3, "test": 10}
    assert (info["tokenised"], info["segmentation"]) == ("moses", "subword_nmt")
    assert (tmp_path / "out/data-bin/codes").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data-bin", "text"]


def test_moses_is_used_where_it_is_given(archive: Path, tmp_path: Path):
    script = tmp_path / "moses/scripts/tokenizer/tokenizer.perl"
    script.parent.mkdir(parents=True)
    script.write_text("$| = 1; while (<STDIN>) { s/([.,!])/ $1/g; print $_; }\n")
    done = prepare(
        "--archive", archive, "--output", tmp_path / "out", "--bpe-merges", 30, MOSES=str(tmp_path / "moses")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokeniser: Moses' Perl scripts" in done.stdout
    assert (
        lines(tmp_path / "out/text/train.en")[1].replace("@@ ", "") == "the house bar ."
    )  # a bare bar goes in cleaning
    refused(prepare("--archive", archive, "--output", tmp_path / "no", MOSES=str(tmp_path)), "MOSES", "tokenizer.perl")


def test_a_download_that_was_cut_goes_on(archive: Path, tmp_path: Path):
    whole = archive.read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/de-en.tgz.part").write_bytes(whole[:700])
    options = ["--url", f"file://{archive}", "--output", tmp_path / "out", "--bpe-merges", 30]
    options += ["--sha256", hashlib.sha256(whole).hexdigest()]
    done = prepare(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/de-en.tgz").read_bytes() == whole
    refused(prepare(*options), "--force")
    assert prepare(*options, "--force").returncode == 0
    done = prepare("--url", f"file://{tmp_path}/none.tgz", "--output", tmp_path / "other")
    refused(done, "none.tgz", "must be reachable")
    assert not (tmp_path / "other/data-bin").exists()


def test_a_damaged_or_foreign_archive_is_refused_and_nothing_is_left(archive: Path, tmp_path: Path):
    whole, out = archive.read_bytes(), tmp_path / "out"
    middle = bytearray(gzip.decompress(whole))
    other = tmp_path / "other.tgz"
    for content, words in (
        (whole[: len(whole) // 2], ["whole de-en.tgz"]),
        (b"<html>not found</html>", ["whole de-en.tgz"]),
        (whole[:200] + b"xxxxxxxxxx" + whole[210:], ["de-en.tgz"]),
        (gzip.compress(bytes(middle[:2048]) + bytes(10240)), ["must hold", "train.tags.de-en.en"]),
    ):
        other.write_bytes(content)
        refused(prepare("--archive", other, "--output", out), *words)
        assert not (out / "data-bin").exists()
        assert not (out / ".prepare-iwslt14").exists()
    refused(prepare("--archive", archive, "--output", out, "--sha256", "0" * 64), "sha256", "0" * 64, "remove the file")


def test_what_was_fetched_and_is_no_archive_is_set_aside_and_fetched_again(archive: Path, tmp_path: Path):
    page, out = tmp_path / "page.html", tmp_path / "out"
    page.write_text("<html>sign in to the network</html>")  # as some networks answer any address
    done = prepare("--url", f"file://{page}", "--output", out)
    refused(done, "whole de-en.tgz", "de-en.tgz.set-aside", "fetches it again")
    assert sum("error: " in line for line in done.stderr.splitlines()) == 1
    assert (out / "de-en.tgz.set-aside").read_text() == page.read_text()
    right = ["--url", f"file://{archive}", "--output", out, "--bpe-merges", 30]
    assert prepare(*right).returncode == 0
    assert (out / "de-en.tgz").read_bytes() == archive.read_bytes()


def text_of(corpus: Path, folder: Path) -> list[object]:
    """A copy of the corpus that a test may spoil, and the options that name it."""
    folder.mkdir()
    for file in corpus.glob("*.??"):
        shutil.copy(file, folder)
    return ["--text-dir", folder, "--source-lang", "aa", "--target-lang", "bb"]


def test_text_that_is_not_utf_8_and_a_dictionary_that_is_none_are_named(corpus: Path, tmp_path: Path):
    options = [*text_of(corpus, tmp_path / "text"), "--output", tmp_path / "out"]
    (tmp_path / "dict").write_text("xx\n")
    done = prepare(*options, "--bpe-merges", 5, "--srcdict", tmp_path / "dict")
    refused(done, "fairseq-preprocess must succeed, but failed: ValueError: Incorrect dictionary format", "xx")
    with open(tmp_path / "text/valid.bb", "ab") as file:
        file.write(b"\xff b1\n")
    refused(prepare(*options, "--sentencepiece", 18), "text must be UTF-8", "valid.bb")
    assert not (tmp_path / "out/data-bin").exists()


def test_a_disk_that_fills_is_one_sentence(archive: Path, tmp_path: Path):
    full = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); "
        "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    options = ["--languages", "de", "en", "--workers", "1", "--report", tmp_path / "report"]
    command = [sys.executable, "-c", full, SCRIPT.with_name("prepare_text.py"), "archive", archive, tmp_path / "text"]
    done = subprocess.run([*map(str, [*command, *options])], text=True, capture_output=True, check=False)
    refused(done, "cannot be read or written: File too large")


def test_no_text_of_the_users_is_replaced(tmp_path: Path):
    out = tmp_path / "mine"
    for folder in (out / "text", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        for subset in ("train", "valid", "test"):
            for language in ("de", "en"):
                (folder / f"{subset}.{language}").write_text(f"ein {language} satz\n" * 9)
    options = ["--output", out, "--bpe-merges", 5]
    for text in (out / "text", tmp_path / "elsewhere"):
        refused(prepare("--text-dir", text, *options), "must not hold text or data-bin without `--force`")
        refused(prepare("--text-dir", text, *options, "--force"), "replaces what this script made", "report.txt")
    assert lines(out / "text/train.de") == ["ein de satz"] * 9
    shutil.rmtree(out)
    assert prepare("--text-dir", tmp_path / "elsewhere", *options).returncode == 0
    segmented = lines(out / "text/train.de")
    refused(prepare("--text-dir", out / "text", *options, "--force"), "`--text-dir` must not be what is replaced")
    assert lines(out / "text/train.de") == segmented
    assert prepare("--text-dir", tmp_path / "elsewhere", *options, "--force").returncode == 0


def test_an_archive_without_the_language_is_refused_and_what_it_lacks_is_named(archive: Path, tmp_path: Path):
    done = prepare("--archive", archive, "--source-lang", "fr", "--output", tmp_path / "out")
    lacking = ["train.tags.de-en.fr", *(f"IWSLT14.{talk}.de-en.fr.xml" for talk in TALKS)]
    refused(done, f"the archive must hold {', '.join(lacking)}, but ")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--archive", "none.tgz"], ["`--archive`", "none.tgz"]),
        (["--text-dir", "none"], ["`--text-dir`", "none"]),
        (["--text-dir", ".", "--archive", "a.tgz"], ["must not be given together"]),
        (["--sentencepiece", "100"], ["`--sentencepiece`", "`--text-dir`"]),
        (["--bpe-merges", "many"], ["`--bpe-merges`", "many"]),
        (["--bpe-codes", "none"], ["codes and dictionaries", "none"]),
        (["--colour", "red"], ["`--colour`", "--help"]),
        (["--output"], ["`--output`", "value"]),
    ],
)
def test_bad_options_are_refused(options: list[str], words: list[str], tmp_path: Path):
    refused(prepare("--output", tmp_path / "out", *options), *words)


def test_text_without_a_file_of_the_pair_is_refused(corpus: Path, tmp_path: Path):
    refused(prepare("--text-dir", corpus, "--output", tmp_path / "out"), "`--text-dir` must hold train.de")
    for language in ("aa", "bb"):
        for subset in ("train", "valid", "test"):
            shutil.copy(corpus / f"{subset}.{language}", tmp_path)
    (tmp_path / "test.bb").write_text("b1 b2\n")
    done = prepare("--text-dir", tmp_path, "--source-lang", "aa", "--target-lang", "bb", "--output", tmp_path / "out")
    refused(done, "both sides of test must have as many lines")
    assert not (tmp_path / "out/data-bin").exists()


def test_new_text_takes_sentencepiece(corpus: Path, tmp_path: Path):
    pair = ["--text-dir", corpus, "--source-lang", "aa", "--target-lang", "bb", "--output", tmp_path / "out"]
    done = prepare(*pair, "--sentencepiece", 18, "--label", "made up")
    assert done.returncode == 0, done.stdout + done.stderr
    text = [line.replace(" ", "").replace("▁", " ").strip() for line in lines(tmp_path / "out/text/test.aa")]
    assert text == lines(corpus / "test.aa")
    info = json.loads((tmp_path / "out/data-bin/data.json").read_text())
    assert (info["tokenised"], info["segmentation"], info["label"]) == ("no", "sentencepiece", "made up")
    found = read_data(tmp_path / "out/data-bin", None, None, None).info
    assert (found["label"], found["segmentation"]) == ("made up", "sentencepiece")
    refused(prepare(*pair, "--sentencepiece", 100000, "--force"), "`--sentencepiece`", "100000")
    assert (tmp_path / "out/data-bin/data.json").is_file()


def test_cleaning_is_as_in_moses():
    long = " ".join(["w"] * 176)
    pairs = [("a b", "c d e"), ("a b", "c d e f"), ("", "a"), (long, long), ("x" * 1001, "y"), ("  a |  b ", "c\td")]
    assert list(prepare_text.clean(pairs)) == [("a b", "c d e"), ("a b", "c d")]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iwslt14")
    for packed in (*(DATA / "iwslt14").glob("*.xz"), *(DATA / "iwslt14/bpe10k").glob("*.xz")):
        with lzma.open(packed) as file:
            (folder / packed.stem).write_bytes(file.read())
    return folder


@real_text
def test_detokenisation_gives_back_the_detokenised_text(official: Path):
    counts = {"valid.de": (7278, 7283), "valid.en": (7283, 7283), "test.de": (6749, 6750), "test.en": (6750, 6750)}
    for name, (equal, total) in counts.items():
        subset, language = name.split(".")
        ours = prepare_text.detokenise(lines(official / name), language)
        theirs = lines(official / f"{subset}.detok.{language}")
        assert len(ours) == len(theirs) == total
        assert sum(a == b for a, b in zip(ours, theirs, strict=True)) == equal


@real_text
@pytest.mark.slow
def test_official_codes_give_the_official_dictionaries(official: Path, tmp_path: Path):
    dictionaries = ["--srcdict", official / "dict.de.txt", "--tgtdict", official / "dict.en.txt"]
    options = ["--text-dir", official, "--output", tmp_path / "out", "--bpe-codes", official / "code"]
    done = prepare(*options, *dictionaries)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "dict.de.txt: 8842 entries, of which the training set has 8276; 0 of its 8276 types are not in it"
        in done.stdout
    )
    assert (
        "dict.en.txt: 6628 entries, of which the training set has 6349; 0 of its 6349 types are not in it"
        in done.stdout
    )
    assert "valid.detok.en: 7283 of 7283" in done.stdout
