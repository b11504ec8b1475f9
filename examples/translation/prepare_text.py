"""What prepare-iwslt14.sh does to text: archive to tokenised text, SentencePiece, and the report on the data folder."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import zip_longest
from multiprocessing import Pool
from pathlib import Path

import without_fairseq  # noqa: F401  before the imports below

from fairseq_dsp.errors import Refusal, as_command, refused_disk
from fairseq_dsp.files.output import checked_folder

SUBSETS = ("train", "valid", "test")
INFO, REFERENCE = "data.json", "reference."  # beside the dictionaries: what reproduce.py has to know of the text
LONGEST, RATIO, VALID_EVERY = 175, 1.5, 23
# talks whose subtitles make the test set, in this order
TEST_TALKS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


class NoArchive(Refusal):
    """An archive that cannot be read as one: what was fetched is something else, or damaged."""

    code = 3


class Report:
    """Lines for the user: printed, and kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def archive(args: argparse.Namespace, report: Report) -> None:
    """The official archive as tokenised, cleaned, lower-cased train, valid and test."""
    raw = _read_archive(args.archive, args.languages)
    moses = os.environ.get("MOSES")
    if moses:
        report(f"tokeniser: Moses' Perl scripts in {Path(moses).name}")
    else:
        report(f"tokeniser: sacremoses {version('sacremoses')}")
    args.output.mkdir(parents=True)
    tokenised = {name: tokenise(lines, name.rpartition(".")[2], args.workers, moses) for name, lines in raw.items()}
    sides = [tokenised[f"train.{language}"] for language in args.languages]
    if len(sides[0]) != len(sides[1]):
        raise Refusal(
            f"both sides of the training set must have as many lines, but have {len(sides[0])} and {len(sides[1])}."
        )
    pairs = [(a.lower(), b.lower()) for a, b in clean(zip(*sides, strict=True))]
    report(
        f"cleaning: {len(pairs)} of {len(sides[0])} pairs of the training set left (1 to {LONGEST} words, ratio {RATIO})"
    )
    for side, language in enumerate(args.languages):
        lines = [pair[side] for pair in pairs]
        _write(args.output / f"train.{language}", (line for n, line in enumerate(lines, 1) if n % VALID_EVERY))
        _write(args.output / f"valid.{language}", (line for n, line in enumerate(lines, 1) if n % VALID_EVERY == 0))
        _write(args.output / f"test.{language}", (line.lower() for line in tokenised[f"test.{language}"]))
    if len(tokenised[f"test.{args.languages[0]}"]) != len(tokenised[f"test.{args.languages[1]}"]):
        raise Refusal("both sides of the test set must have as many lines, but do not.")


def training_lines(text: str) -> list[str]:
    """The lines of a `train.tags` file: no addresses, ids and keywords; titles and descriptions without their tags."""
    kept = (line for line in _lines(text) if not any(tag in line for tag in ("<url>", "<talkid>", "<keywords>")))
    return [re.sub(r"</?(?:title|description)>", "", line) for line in kept]


def segments(text: str) -> list[str]:
    """The segments of an IWSLT14 xml file, with typewriter apostrophes."""
    found = (line for line in _lines(text) if "<seg id" in line)
    bare = (re.sub(r"\s*</seg>\s*", "", re.sub(r'<seg id="[0-9]*">\s*', "", line)) for line in found)
    return [line.replace("’", "'") for line in bare]


def clean(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of 1 to 175 words whose lengths differ by a factor of 1.5 at most, without bars and doubled spaces."""
    for pair in pairs:
        first, second = (" ".join(line.replace("|", "").split()) for line in pair)
        a, b = (len(line.split(" ")) if line else 0 for line in (first, second))
        short = all(len(word) <= 1000 for word in (*first.split(" "), *second.split(" ")))
        if 1 <= a <= LONGEST and 1 <= b <= LONGEST and a <= RATIO * b and b <= RATIO * a and short:
            yield first, second


def tokenise(lines: Sequence[str], language: str, workers: int, moses: str | None) -> list[str]:
    """Moses tokenisation with escapes, by the Perl script where `moses` is its checkout, else by sacremoses."""
    if moses:
        script = Path(moses) / "scripts/tokenizer/tokenizer.perl"
        if not script.is_file():
            raise Refusal(f"MOSES must be a folder of mosesdecoder, but {script} does not exist.")
        done = subprocess.run(
            ["perl", str(script), "-threads", str(workers), "-l", language],
            input="".join(line + "\n" for line in lines), text=True, encoding="utf-8", capture_output=True, check=False,
        )  # fmt: skip
        tokenised = _lines(done.stdout)
        if done.returncode or len(tokenised) != len(lines):
            raise Refusal(
                f"tokenizer.perl must answer every line, but ended with code {done.returncode}: {done.stderr[-300:]}"
            )
        return tokenised
    numbered = [(language, line) for line in lines]
    if workers == 1:
        return [_sacremoses(item) for item in numbered]
    with Pool(workers) as pool:
        return pool.map(_sacremoses, numbered, chunksize=2000)


def sentencepiece(args: argparse.Namespace, report: Report) -> None:
    """Learns one vocabulary on both sides of the training set, and segments everything with it."""
    import sentencepiece as library

    prefix = args.output / "sentencepiece"
    texts = [str(args.text / f"train.{language}") for language in args.languages]
    try:
        library.SentencePieceTrainer.train(
            input=texts, model_prefix=str(prefix), vocab_size=args.size, character_coverage=1.0, minloglevel=2
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refusal(
            f"`--sentencepiece` must be a size that the text allows, but {args.size} is not: {reason}"
        ) from error
    model = library.SentencePieceProcessor(model_file=f"{prefix}.model")
    for subset in SUBSETS:
        for language in args.languages:
            lines = _read(args.text / f"{subset}.{language}")
            _write(args.output / f"{subset}.{language}", (" ".join(model.encode(line, out_type=str)) for line in lines))
    report(f"SentencePiece: {args.size} pieces learned jointly on the training set")


def finish(args: argparse.Namespace, report: Report) -> None:
    """Reports on what was made, and leaves beside the dictionaries what must be known of the text."""
    counts = {}
    for subset in SUBSETS:
        sides = [len(_read(args.segmented / f"{subset}.{language}")) for language in args.languages]
        if sides[0] != sides[1] or not sides[0]:
            raise Refusal(
                f"both sides of {subset} must have as many lines, and some, but have {sides[0]} and {sides[1]}."
            )
        counts[subset] = sides[0]
    report("pairs: " + ", ".join(f"{count} {subset}" for subset, count in counts.items()))
    for language in args.languages:
        dictionary = {line.rpartition(" ")[0] for line in _read(args.data / f"dict.{language}.txt")}
        dictionary = {word for word in dictionary if not word.startswith("madeupword")}
        words = set((args.segmented / f"train.{language}").read_text(encoding="utf-8").split())
        report(
            f"dict.{language}.txt: {len(dictionary)} entries, of which the training set has {len(dictionary & words)}; "
            f"{len(words - dictionary)} of its {len(words)} types are not in it"
        )
    for subset in ("valid", "test"):
        for language in args.languages if args.tokenised == "moses" else ():
            detokenised = args.text / f"{subset}.detok.{language}"
            if detokenised.is_file():
                ours = detokenise(_read(args.text / f"{subset}.{language}"), language)
                theirs = _read(detokenised)
                equal = sum(a == b for a, b in zip_longest(ours, theirs))
                report(f"{detokenised.name}: {equal} of {len(ours)} lines come back equal from our detokenisation")
    info = {"source": args.languages[0], "target": args.languages[1], "label": args.label, "pairs": counts}
    info |= {"tokenised": args.tokenised, "segmentation": args.segmentation}
    (args.data / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    # fairseq's data has no word for a character that the training set lacks
    shutil.copy(args.text / f"test.{args.languages[1]}", args.data / f"{REFERENCE}{args.languages[1]}")
    for codes in (*args.segmented.glob("codes"), *args.segmented.glob("sentencepiece.model")):
        shutil.copy(codes, args.data)


def place(args: argparse.Namespace, report: Report) -> None:
    """Gives the finished text and data folders their names, once all of them are free or may be replaced."""
    outputs = [
        (checked_folder(args.output / folder, args.force, "what this script made", _holds(mark)), made)
        for folder, mark, made in (("text", "report.txt", args.segmented), ("data-bin", INFO, args.data))
    ]
    for output, made in outputs:
        with output.written("the data") as new:
            os.rename(made, new)  # over the empty folder


def _holds(mark: str) -> Callable[[str], bool]:
    return lambda folder: os.path.isfile(os.path.join(folder, mark))


def detokenise(lines: Iterable[str], language: str) -> list[str]:
    """Moses detokenisation, by sacremoses."""
    from sacremoses import MosesDetokenizer

    detokeniser = MosesDetokenizer(language)
    return [detokeniser.detokenize(line.split()) for line in lines]


@lru_cache(maxsize=4)
def _tokeniser(language: str):  # type: ignore[no-untyped-def]
    from sacremoses import MosesTokenizer

    return MosesTokenizer(language)


def _sacremoses(item: tuple[str, str]) -> str:
    return _tokeniser(item[0]).tokenize(item[1], return_str=True, escape=True)


def _read_archive(path: Path, languages: Sequence[str]) -> dict[str, list[str]]:
    """Raw lines of `train.LANG` and `test.LANG`."""
    wanted = {f"train.tags.de-en.{language}": ("train", language) for language in languages}
    for talk in TEST_TALKS:
        wanted |= {f"IWSLT14.{talk}.de-en.{language}.xml": ("test", language) for language in languages}
    found = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and member.isfile() and (file := tar.extractfile(member)) is not None:
                    found[name] = file.read().decode("utf-8")
    except Exception as error:  # what tarfile, gzip, zlib and UTF-8 raise has no common base
        reason = " ".join(str(error).split())[:200]
        raise NoArchive(f"the archive must be a whole de-en.tgz, but {path} cannot be read: {reason}") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise Refusal(f"the archive must hold {', '.join(missing)}, but {path} does not.")
    raw: dict[str, list[str]] = {}
    for name, (subset, language) in wanted.items():  # the order of the talks
        lines = training_lines(found[name]) if subset == "train" else segments(found[name])
        raw.setdefault(f"{subset}.{language}", []).extend(lines)
    return raw


def _read(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        Refusal: it is not UTF-8.
    """
    try:
        return _lines(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(f"text must be UTF-8, but {path} is not: {error}.") from error


def _lines(text: str) -> list[str]:
    """Lines by newline alone: splitlines would break at characters that are part of a sentence."""
    return text.removesuffix("\n").split("\n") if text else []


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Steps of prepare-iwslt14.sh.")
    steps = parser.add_subparsers(dest="step", required=True)
    for step, paths in (
        (archive, ("archive", "output")),
        (sentencepiece, ("text", "output")),
        (finish, ("text", "segmented", "data")),
        (place, ("segmented", "data", "output")),
    ):
        sub = steps.add_parser(step.__name__)
        sub.set_defaults(function=step)
        for path in paths:
            sub.add_argument(path, type=Path)
        sub.add_argument("--languages", nargs=2, required=True)
        sub.add_argument("--report", type=Path, required=True)
        sub.add_argument("--force", action="store_true")
        for option, kind in (
            ("workers", int),
            ("size", int),
            ("tokenised", str),
            ("segmentation", str),
            ("label", str),
        ):
            sub.add_argument(f"--{option}", type=kind)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with as_command("prepare-iwslt14.sh"), refused_disk(args.report.parent):
        args.function(args, Report(args.report))


if __name__ == "__main__":
    main()
