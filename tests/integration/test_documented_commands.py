"""Every fenced command of README and docs runs as it stands on small data, or stands in `NOT_RUN` with the reason.

A block is a test. It runs in a folder where the names that the pages use mean something: `DATA-BIN` is the tiny corpus, `dense.pt` a
dense model with the 72 heads of the recipe and a width of 16, `pruned.pt` what the README's recipe leaves after two updates. A
command gets further options behind its own (`SMALLER`), which make it fast and change nothing of what it shows. Pages of results are
records of what was run on their machines, and no instructions.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import made_up
import pytest
from commands import GENERATE, HYDRA, PREPROCESS, ROOT, TRAIN, Running, heads_in
from models import not_on_0_12_2
from test_report import translations

from fairseq_dsp.analysis.records import REFERENCES

pytestmark = not_on_0_12_2

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "examples/translation/README.md"]

# By how a command begins; each must be there.
NOT_RUN = {
    "make ": "installs, or runs the tests themselves; tests/integration/test_endings.py and tests/unit know the demo's program",
    "pip install ": "a network and a compiler; `make venv` does the same",
    ".venv/bin/": "for a checkout with an environment of its own",
    "python -m tests.campaigns.": "minutes; test_campaigns.py runs a slice of each",
    "fairseq-hydra-train -m ": "eight trainings, or a cluster; test_sweeps.py runs the same arguments with two budgets",
    "examples/translation/prepare-iwslt14.sh ": "an archive, or text of one's own; test_prepare.py and test_prepare_download.py run it",
    "python examples/translation/reproduce.py ": "hours, or six minutes; test_reproduce.py runs the preset smoke",
    "python examples/translation/explore.py ": "hours; test_explore.py runs the plan smoke",
    "python examples/translation/explore_report.py ": "reads what explore.py leaves; test_explore.py runs it",
    "python examples/translation/blocks.py ": "minutes; test_blocks_study.py runs it in its smallest size",
    "python examples/translation/multilingual.py ": "hours; test_multilingual_study.py runs the preset smoke",
    "fairseq-preprocess -s en ": "text of four languages; the corpus of test_multilingual_training.py is made so",
    "fairseq-train data-bin --user-dir fairseq_dsp --task translation_multi_simple_epoch_dsp ": "four languages; "
    "test_multilingual_training.py trains so",
    "fairseq-generate data-bin ": "four languages; test_multilingual_deployment.py translates so",
    "fairseq-dsp-score data-bin --path multi.pt ": "four languages; test_multilingual_scores.py scores so",
    "fairseq-dsp-prune multi.pt ": "four languages; test_multilingual_scores.py makes specialists",
    "fairseq-dsp-bench --costs ": "what a machine measures of a tiny model is noise; test_benchmark_costs.py measures so",
    "fairseq-dsp-prune dense.pt small.pt --scores scores.json --budget latency=": "needs such a file; test_prune_budget.py prunes so",
    "fairseq-dsp-bench --promised ": "needs such a file; test_benchmark_costs.py compares so",
    "torchrun ": "several GPUs",
    "fairseq-train DATA-BIN --user-dir fairseq_dsp --cpu --distributed-backend gloo ": "the beginning of a command; "
    "test_processes.py trains two processes so",
    "OMP_NUM_THREADS=1 python - ": "measures for a quarter of a minute",
}

TINY = [f"--{side}-{name} 16" for side in ("encoder", "decoder") for name in ("embed-dim", "ffn-embed-dim")]
FAST = ["--cpu --max-update 2 --num-workers 0 --no-progress-bar --max-tokens 400"]
# Behind a command that begins so and has the second text in it, the first that fits.
SMALLER = {
    ("fairseq-train quickstart/data-bin", ""): [*FAST, "--validate-interval 1"],
    ("fairseq-train", "--eval-bleu"): [*TINY, *FAST, """--eval-bleu-args '{"max_len_b": 5}'"""],
    ("fairseq-train", ""): [*TINY, *FAST],
    ("fairseq-generate", ""): ["--cpu --max-len-b 5"],
    ("fairseq-hydra-train", ""): [
        *("+model." + option.removeprefix("--").replace("-", "_").replace(" ", "=") for option in TINY),
        "common.cpu=true optimization.max_update=2 dataset.max_tokens=400",
        f"common.user_dir={ROOT}/fairseq_dsp",
        r""" "task.eval_bleu_args='{\"max_len_b\":5}'" """,
    ],
    ("fairseq-dsp-prune", ""): ["--force"],
    ("fairseq-dsp-score", ""): ["--force --batches 2"],
    ("fairseq-dsp-train-scorer", ""): ["--force --steps 3 --batches 2"],
    ("fairseq-dsp-export", ""): ["--force"],
    ("fairseq-dsp-bench", ""): ["--pairs 1 --warmup 0 --no-memory --max-tokens 50 --output-length 2 --batch-size 1,2"],
    ("fairseq-dsp-report", ""): ["--force"],
    ("python examples/translation/sample_corpus.py", ""): ["--pairs 100"],
    ("python -m fairseq_dsp.benchmark.choice", ""): ["--seeds 1 --updates 80 --dense-updates 2"],
    ("python -m fairseq_dsp.benchmark.estimators", ""): ["--draws 2 --truth-draws 100"],
    ("python docs/benchmarks/make.py", ""): ["--dry-run"],
}
MODULES = {"fairseq-train": TRAIN, "fairseq-generate": GENERATE, "fairseq-preprocess": PREPROCESS}
MODULES |= {"fairseq-hydra-train": HYDRA}


# Run with --slow only: they take more than some seconds however small what they are given.
SLOW = (
    "python -m fairseq_dsp.benchmark.choice ",
    "fairseq-dsp-report ",
    "fairseq-dsp-bench --path dense.pt pruned.pt --data DATA-BIN --s",
)


class Block(NamedTuple):
    """The commands of a fence, as they stand."""

    page: Path
    line: int
    commands: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    """Fences without a language: those of commands. A command may go on in the next line, or be a program for Python's stdin."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in re.finditer(r"^```(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        if fence[1]:
            continue
        body = fence[2].replace("\\\n", " ")
        commands = [command.strip() for command in re.findall(r"^.*<<'END'\n(?:.*\n)*?END$|^.+$", body, re.MULTILINE)]
        found.append(Block(page, text[: fence.start()].count("\n") + 2, tuple(commands)))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if not all(command.startswith(tuple(NOT_RUN)) for command in block.commands)]


def smaller(command: str) -> str:
    """A command with options behind it that make it fast; none change what a program on stdin does."""
    for (beginning, part), options in SMALLER.items():
        if command.startswith(beginning) and part in command:
            return " ".join([command, *options])
    return command


def parsed(command: str) -> tuple[Callable[[], object], list[str], dict[str, str]]:
    """What runs in a child, its arguments, and its files for stdin (`<`) and stdout (`>`)."""
    program, _, body = command.partition("<<'END'\n")
    if body:
        assert program.strip() == "python -"
        return lambda: exec(body.removesuffix("END"), {"__name__": "__main__"}), [], {}
    words = shlex.split(program, comments=True)
    files = {sign: words[words.index(sign) + 1] for sign in "<>" if sign in words}
    words = [word for word in words if word not in ("<", ">") and word not in files.values()]
    name, *words = words
    if name != "python":
        module = MODULES.get(name, "fairseq_dsp.cli." + name.removeprefix("fairseq-dsp-").replace("-", "_"))
        importlib.import_module(module)  # before the fork
        return lambda: importlib.import_module(module).cli_main(), words, files
    if words[0] == "-m":
        return lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True), words[2:], files
    return lambda: run_script(words[0]), words[1:], files


def run_script(path: str) -> None:
    """As `python path`, which finds what lies beside the script."""
    sys.path.insert(0, str(Path(path).parent.resolve()))
    runpy.run_path(path, run_name="__main__")


def act_in(place: Path, command: str) -> None:
    """Runs a command in the folder; it must end well.

    Raises:
        AssertionError: with the end of what it printed.
    """
    text = smaller(command).replace("$PWD", str(place))
    # the plug-in that is imported already, by the path that fairseq knows it by
    act, arguments, files = parsed(text.replace("--user-dir fairseq_dsp", f"--user-dir {ROOT}/fairseq_dsp"))

    def there() -> None:
        os.chdir(place)
        act()

    stdin = (place / files["<"]).read_text(encoding="utf-8") if "<" in files else ""
    done = Running(there, arguments, place, stdin).wait()
    assert done.code == 0, f"{command}\n{done.out[-1500:]}{done.err[-1500:]}"
    if ">" in files:
        (place / files[">"]).write_text(done.out, encoding="utf-8")


def recipe() -> Block:
    """The README's block that trains with a budget, rewrites and generates."""
    (block,) = (
        each for each in BLOCKS if each.page.name == "README.md" and "--cooldown-updates 15000" in each.commands[0]
    )
    return block


@pytest.fixture(scope="module")
def place(data: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the names of the pages mean something."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("examples", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("DATA-BIN", "data-bin/iwslt14.tokenized.de-en"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(data)
    shutil.copy(corpus / "test.aa", folder / "test.de")
    words = sorted({word for line in (corpus / "train.aa").read_text().splitlines() for word in line.split()})
    merges = dict.fromkeys(pair for word in words for pair in (f"{word[0]} {word[1:]}</w>", *ends_of(word)))
    (folder / "codes").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in reversed(merges)))
    runs = [made_up.run("dense", 36), made_up.run(kept=12), made_up.run()]
    for run, wrong in zip(runs, (0.1, 0.2, 0.3), strict=True):
        run["hypotheses"] = f"hypotheses/{run['method']}-{run['kept']}.detok.txt"
        file = folder / run["hypotheses"]
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in translations(run["kept"], wrong)))
    (folder / REFERENCES).write_text("".join(f"{line}\n" for line in translations(0, 0.0)))
    made_up.write(folder / "results.jsonl", runs)
    (folder / "runs").symlink_to(folder)
    act_in(
        folder,
        "fairseq-train DATA-BIN --arch transformer_iwslt_de_en --share-decoder-input-output-embed --save-dir dense "
        "--optimizer adam --lr 1e-3 --criterion label_smoothed_cross_entropy",
    )
    (folder / "dense/checkpoint_last.pt").rename(folder / "dense.pt")
    for command in recipe().commands:
        act_in(folder, command)
    (folder / "checkpoint_best.pt").symlink_to("checkpoints/checkpoint_best.pt")
    (folder / "other.pt").symlink_to("dense.pt")
    return folder


def ends_of(word: str) -> list[str]:
    """Merges of the digits of a word such as `a11`."""
    return [f"{word[1]} {word[2:]}</w>"] if len(word) > 2 else []


def title(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def parameter(block: Block) -> object:
    slow = any(command.startswith(SLOW) for command in block.commands)
    return pytest.param(block, id=title(block), marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("block", [parameter(block) for block in RUN if block != recipe()])
def test_a_block_of_commands_runs(block: Block, place: Path):
    if any("ctranslate2" in command for command in block.commands):
        pytest.importorskip("ctranslate2")
    before = set(place.iterdir())
    for command in block.commands:
        if not command.startswith(tuple(NOT_RUN)):
            act_in(place, command)
    for new in set(place.iterdir()) - before:  # no block stands in the way of another
        shutil.rmtree(new) if new.is_dir() else new.unlink()


def test_the_recipe_leaves_exactly_its_heads(place: Path):
    """It is run where the folder is made, for the other blocks take what it leaves."""
    act_in(place, recipe().commands[1])
    assert heads_in(place / "pruned.pt", head_dim=4) == 18


def test_every_reason_not_to_run_is_of_a_command_that_is_there():
    commands = [command for block in BLOCKS for command in block.commands]
    assert [beginning for beginning in NOT_RUN if not any(each.startswith(beginning) for each in commands)] == []


def test_every_page_has_its_fences_closed_and_those_of_other_text_named():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert set(fences[1::2]) <= {""}, page
        python = {"python", "python no-test"} if page.name == "api.md" else set()  # test_api.py runs it
        assert set(fences[::2]) <= {"", "bibtex", "text", *python}, page
