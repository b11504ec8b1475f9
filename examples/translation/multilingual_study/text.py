"""From texts of language pairs to the folders that fairseq reads: one vocabulary for all, and halves of every training set."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import sample_corpus
from fairseq import options
from fairseq.data import Dictionary
from fairseq_cli import preprocess

from fairseq_dsp.errors import Refusal

from .presets import Preset

SUBSETS = ("train", "valid", "test")
DATA, HALVES = "data", ("half1", "half2")


def pairs_of(folder: Path) -> list[str]:
    """The pairs whose three sets a folder of texts holds: `train.en-de.en`, plain or compressed by xz.

    Raises:
        Refusal: there are fewer than two.
    """
    names = {
        path.name.removesuffix(".xz").split(".")[1] for path in folder.glob("train.*.*") if path.name.count(".") >= 2
    }
    sides = lambda pair: pair.split("-") if pair.count("-") == 1 else []  # noqa: E731
    found = [
        pair
        for pair in sorted(names)
        if sides(pair) and all(_path(folder, subset, pair, side) for subset in SUBSETS for side in sides(pair))
    ]
    if len(found) < 2:
        raise Refusal(
            f"`--text` must hold train, valid and test of two language pairs or more (train.en-de.en and so on), but {folder} holds "
            f"{', '.join(found) or 'none'}."
        )
    hubs = set.intersection(*({*pair.split("-")} for pair in found))
    if len(hubs) != 1:
        raise Refusal(
            f"`--text` must hold pairs that share one language, but those of {folder} are {', '.join(found)}."
        )
    return found


def prepare(text: Path | None, out: Path, preset: Preset, low: str | None) -> list[str]:
    """Makes the data folders, unless they are there; returns the pairs, as the texts name them.

    Args:
        text: the folder of texts; None for the sample corpus.
        low: the pair of which fewer sentences are kept.
    """
    if text is None:
        text = out / "sample"
    if (out / "data.done").exists():
        return (out / "data.done").read_text().split()
    if text == out / "sample":
        sample_corpus.write_corpus(text, pairs=preset.most, languages=3)
    pairs = pairs_of(text)
    for folder in (DATA, *HALVES, "text"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "text").mkdir()
    lines = {}
    for subset in SUBSETS:
        for pair in pairs:
            most = preset.held_out if subset != "train" else preset.fewest if pair == low else preset.most
            for side in pair.split("-"):
                lines[subset, pair, side] = _read(text, subset, pair, side)[:most]
                if subset == "test":
                    _write(reference(out, pair, side), lines[subset, pair, side])
    for (subset, pair, side), found in _segmented(lines, out, preset.words).items():
        _write(out / f"text/{subset}.{pair}.{side}", found)
        if subset == "train":
            for half in (0, 1):
                _write(out / f"text/{HALVES[half]}.{pair}.{side}", found[half::2])
    words = Dictionary()
    for path in sorted((out / "text").glob("train.*")):
        for word in path.read_text(encoding="utf-8").split():
            words.add_symbol(word)
    words.finalize()
    words.save(str(out / "dict.txt"))
    for pair in pairs:
        _binarise(out, pair, DATA, {"trainpref": "train", "validpref": "valid", "testpref": "test"})
        for half in HALVES:
            _binarise(out, pair, half, {"trainpref": half})
    (out / "data.done").write_text("\n".join(pairs) + "\n")
    return pairs


def reference(out: Path, pair: str, side: str) -> Path:
    """Where a test set's sentences lie before they are cut into pieces."""
    return out / f"text/reference.{pair}.{side}"


def _binarise(out: Path, pair: str, folder: str, sets: dict[str, str]) -> None:
    """fairseq-preprocess, in this process: starting one takes longer than the work."""
    source, target = pair.split("-")
    words = ["-s", source, "-t", target, "--workers", "1", "--destdir", str(out / folder)]
    words += ["--srcdict", str(out / "dict.txt"), "--tgtdict", str(out / "dict.txt")]
    for option, name in sets.items():
        words += [f"--{option}", str(out / f"text/{name}.{pair}")]
    preprocess.main(options.get_preprocessing_parser().parse_args(words))


def _segmented(lines: dict, out: Path, size: int | None) -> dict:  # type: ignore[type-arg]
    """Every text in pieces of one vocabulary, learned on all training sets."""
    if size is None:
        return lines
    import sentencepiece

    (out / "joint.txt").write_text("".join(f"{line}\n" for key in lines if key[0] == "train" for line in lines[key]))
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(out / "joint.txt"), model_prefix=str(out / "sentencepiece"), vocab_size=size, character_coverage=1.0,
            minloglevel=2, num_threads=1,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise Refusal(
            f"the text must allow {size} pieces, but does not: {str(error).strip().splitlines()[-1]}"
        ) from error
    (out / "joint.txt").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "sentencepiece.model"))
    return {key: [" ".join(model.encode(line, out_type=str)) for line in found] for key, found in lines.items()}


def _path(folder: Path, subset: str, pair: str, side: str) -> Path | None:
    path = folder / f"{subset}.{pair}.{side}"
    return next((each for each in (path, path.with_name(f"{path.name}.xz")) if each.is_file()), None)


def _read(folder: Path, subset: str, pair: str, side: str) -> list[str]:
    path = _path(folder, subset, pair, side)
    assert path is not None
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else open(path, encoding="utf-8") as file:
        return [line.strip() for line in file]


def _write(path: Path, lines: Sequence[str] | Iterator[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
