"""The main job from text to translations: train dense, train with a head budget, rewrite, cut heads and FFNs, generate, compare.

    python examples/translation/demo.py                                               the sample corpus, some minutes
    python examples/translation/demo.py --text DIR --source-lang de --target-lang en  your own text

DIR holds tokenised {train,valid,test}.{de,en}; a joint BPE is learned on it. Every command is printed before it runs, so
that it can be run again by hand. Everything is written to one folder, whose earlier content from this program is replaced;
with --resume, commands that have finished there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_settings import ATTENTION_HEADS, REAL_TEXT, SAMPLE, get_parser
from rich.console import Console
from rich.table import Table

from fairseq_dsp.analysis.plots import kept_heads_grid
from fairseq_dsp.analysis.translations import read_translations, tokenised_bleu
from fairseq_dsp.errors import Refusal, as_command, noted, refused_disk
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.files.output import refuse_working_folder
from fairseq_dsp.modules.surgery import neurons_of
from fairseq_dsp.options.objections import budget_out_of_range
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout

MARKER = ".fairseq_dsp_demo"
# The models are so small that a second thread gains nothing, and costs much where the cores have other work.
ONE_THREAD = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONIOENCODING": "utf-8"}  # translations are UTF-8
SPLITS = ("train", "valid", "test")


class Demo:
    """One run of the program.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recipe = SAMPLE if options.text is None else REAL_TEXT
        self.out: Path = options.output
        self.text = options.text or self.out / "text"
        self.pair = (options.source_lang, options.target_lang)
        self.total_heads = ATTENTION_HEADS * 3 * self.recipe.layers
        self.budget = options.unpruned_heads if options.unpruned_heads is not None else self.total_heads // 6
        self.epochs = options.epochs if options.epochs is not None else self.recipe.epochs
        self.count = options.seeds if options.seeds is not None else self.recipe.seeds
        self.seeds = range(options.seed, options.seed + self.count)

    def run(self) -> dict[str, float]:
        """Does it all and prints the table; returns the BLEU of every row."""
        started = time.monotonic()
        self._check()
        self._clear_folder()
        print(f"every command below runs with OMP_NUM_THREADS={ONE_THREAD['OMP_NUM_THREADS']}")
        self._prepare_text()
        dense = self._train("dense", self._dense_options(), self.options.seed)
        (trained, pruned), *others = (self._train_and_prune(seed) for seed in self.seeds)
        random_heads = self.out / "random.pt"
        layout = model_of(pruned).layout
        control = Layout.full(layout.grid).random_subset(self.budget, self.options.seed)
        self._command("fairseq-dsp-prune", dense, random_heads, "--layout", control)
        cuts = self._cut(dense)
        rows = [
            ("dense", dense),
            ("budget, masked", trained),
            ("budget, rewritten", pruned),
            *((f"budget, rewritten, seed {n}", path) for n, (_, path) in zip(self.seeds[1:], others, strict=True)),
            ("dense, random heads", random_heads),
            *((f"cut, {kinds}", path) for kinds, path in cuts.items()),
        ]
        table, bleu = self._compare(rows)
        layouts = {f"DSP, {self.budget} heads": layout, "random": control}
        layouts |= {f"cut, {kinds}": model_of(path).layout for kinds, path in cuts.items()}
        kept_heads_grid(layouts, str(self.out / "heads.png"))
        Console().print(table)
        if others:  # heads chosen and rounding move the score of one seed by many points
            found = [score for name, score in bleu.items() if name.startswith("budget, rewritten")]
            seeds = ", ".join(map(str, self.seeds))
            print(f"BLEU with {self.budget} heads over seeds {seeds}: {min(found):.1f} to {max(found):.1f}")
        print(layout.drawing())
        print(f"head grid: {self.out / 'heads.png'}; {time.monotonic() - started:.0f} seconds in all")
        return bleu

    def _check(self) -> None:
        """Refuses, before anything of an earlier run is removed, what cannot be run; never touches a folder of others."""
        reasons: list[str] = []
        with noted(reasons):
            refuse_working_folder(self.out)
        if self.out.exists() and not self.out.is_dir():
            reasons.append(f"`--output` must be a folder, but {self.out} is a file.")
        elif self.out.exists() and any(self.out.iterdir()) and not (self.out / MARKER).exists():
            reasons.append(
                f"`--output` must be new, empty or an earlier run's folder, but {self.out} holds other files."
            )
        if self.options.text is not None:
            reasons += self._objections_to_text()
        if not 0 <= self.budget <= self.total_heads:
            reasons.append(budget_out_of_range(self.budget, self.total_heads))
        for name, number in (("epochs", self.epochs), ("seeds", self.count)):
            if number < 1:
                reasons.append(f"`--{name}` must be at least 1, but is {number}.")
        if reasons:
            raise Refusal(*reasons)

    def _objections_to_text(self) -> list[str]:
        if self.text.resolve().is_relative_to(self.out.resolve()):
            return [f"`--text` must not lie in `--output`, which is cleared, but is {self.text}."]
        names = [self.text / f"{split}.{side}" for split in SPLITS for side in self.pair]
        if missing := ", ".join(str(name) for name in names if not name.is_file()):
            return [f"`--text` must hold train, valid and test in both languages, but {missing} is missing."]
        return []

    def _clear_folder(self) -> None:
        if not self.options.resume:
            shutil.rmtree(self.out.resolve(), ignore_errors=True)
        (self.out / MARKER).mkdir(parents=True, exist_ok=True)

    def _prepare_text(self) -> None:
        if self.options.text is None:
            self._python("sample_corpus.py", "--output", self.text)
        text = self.text
        if self.recipe.bpe_merges is not None:
            text = self._apply_bpe(self.recipe.bpe_merges)
        joined = ["--joined-dictionary"] if self.recipe.bpe_merges is not None else []
        self._command(
            "fairseq-preprocess", "--source-lang", self.pair[0], "--target-lang", self.pair[1],
            "--trainpref", text / "train", "--validpref", text / "valid", "--testpref", text / "test",
            "--destdir", self.out / "data-bin", *joined,
        )  # fmt: skip

    def _apply_bpe(self, merges: int) -> Path:
        folder = self.out / "bpe"
        folder.mkdir(exist_ok=True)
        codes = folder / "codes"
        train = [self.text / f"train.{side}" for side in self.pair]
        vocabularies = [folder / f"vocabulary.{side}" for side in self.pair]
        self._command(
            "subword-nmt", "learn-joint-bpe-and-vocab", "--input", *train, "--symbols", merges,
            "--output", codes, "--write-vocabulary", *vocabularies,
        )  # fmt: skip
        for split in SPLITS:
            for side in self.pair:
                name = f"{split}.{side}"
                self._command(
                    "subword-nmt", "apply-bpe", "--codes", codes, "--input", self.text / name, "--output", folder / name
                )
        return folder

    def _train_and_prune(self, seed: int) -> tuple[Path, Path]:
        """A training with the budget, and the checkpoint rewritten."""
        name = "" if seed == self.options.seed else f"-seed{seed}"
        trained, pruned = self._train(f"budget{name}", self._budget_options(), seed), self.out / f"pruned{name}.pt"
        self._command("fairseq-dsp-prune", trained, pruned)
        return trained, pruned

    def _cut(self, dense: Path) -> dict[str, Path]:
        """The dense model cut by scores, without training: of its heads alone, and of heads and neurons to as many parameters."""
        paths = {"heads": self.out / "cut-heads.pt", "heads and FFN": self.out / "cut-both.pt"}
        budget = ["--unpruned-heads", self.total_heads * 3 // 8]
        for path, units in zip(paths.values(), ("heads", "heads,ffn"), strict=True):
            data, scores = self.out / "data-bin", path.with_suffix(".json")
            how = ["--units", units, "--scorer", "fisher", "--batches", 20]
            self._command("fairseq-dsp-score", data, "--path", dense, *how, "--output", scores)
            self._command("fairseq-dsp-prune", dense, path, "--scores", scores, *budget, "--rescale", data)
            budget = ["--budget", f"parameters={model_of(path).weight_count()}"]
        return paths

    def _train(self, name: str, options: list[str], seed: int) -> Path:
        """Trains for the recipe's epochs and returns the checkpoint that scored best in validation."""
        recipe, folder = self.recipe, self.out / name
        width, inner = recipe.width, 2 * recipe.width
        self._command(
            "fairseq-train", self.out / "data-bin", "--cpu", "--user-dir", "fairseq_dsp", *options,
            "--encoder-layers", recipe.layers, "--encoder-attention-heads", ATTENTION_HEADS,
            "--encoder-embed-dim", width, "--encoder-ffn-embed-dim", inner,
            "--decoder-layers", recipe.layers, "--decoder-attention-heads", ATTENTION_HEADS,
            "--decoder-embed-dim", width, "--decoder-ffn-embed-dim", inner, "--share-decoder-input-output-embed",
            "--label-smoothing", "0.1", "--adam-betas", "(0.9, 0.98)", "--lr", recipe.learning_rate,
            "--lr-scheduler", "inverse_sqrt", "--warmup-updates", recipe.warmup, "--dropout", "0.1",
            "--weight-decay", "0.0001", "--max-tokens", recipe.max_tokens, "--max-epoch", self.epochs,
            "--seed", seed, "--required-batch-size-multiple", "1", "--validate-interval", "2",
            "--no-epoch-checkpoints", "--no-progress-bar", "--log-interval", "100", "--save-dir", folder,
            log=folder.with_suffix(".log"),
        )  # fmt: skip
        return folder / "checkpoint_best.pt"

    def _dense_options(self) -> list[str]:
        return [
            "--task", "translation", "--arch", "transformer_tiny",
            "--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam",
        ]  # fmt: skip

    def _budget_options(self) -> list[str]:
        return [
            "--task", "translation_dsp", "--unpruned-heads", str(self.budget), "--arch", "dsp_transformer_tiny",
            "--criterion", "label_smoothed_cross_entropy_dsp", "--optimizer", "dsp_adam", "--importance-lr", "0.05",
            # gentler than the paper's 0.2, 0.1 and 1e-8, which are for trainings of 60 epochs: docs/design/0003
            "--initial-temperature", "0.5", "--final-temperature", "0.01",
            "--cooldown-updates", str(self.recipe.cooldown),
        ]  # fmt: skip

    def _compare(self, rows: list[tuple[str, Path]]) -> tuple[Table, dict[str, float]]:
        """Generates the test set with every checkpoint; one row each, and the BLEU of each."""
        expected = sum(1 for _ in open(self.text / f"test.{self.pair[0]}", encoding="utf-8"))
        lines, bleu, signature = [], {}, ""
        for name, path in rows:
            printed = self._command(
                "fairseq-generate", self.out / "data-bin", "--cpu", "--user-dir", "fairseq_dsp", "--path", path,
                "--beam", "5", "--remove-bpe", "--batch-size", "64", "--required-batch-size-multiple", "1",
            )  # fmt: skip
            translations = read_translations(printed, expected)
            score = tokenised_bleu(translations)
            bleu[name], signature = score.value, score.signature
            model = model_of(path)  # a budget's checkpoint holds all heads; they are left out when it is used
            heads, neurons = model.deployed_layout().by_kind()[HEADS.noun][0], sum(map(sum, neurons_of(model).values()))
            figures = f"{score.value:.1f}", f"{model.weight_count():,}", f"{path.stat().st_size / 1e6:.1f}"
            lines.append((name, f"{heads}", f"{neurons:,}", *figures, f"{translations.tokens_per_second:.0f}"))
        table = Table(
            title="test set", caption=f"BLEU {signature}; checkpoints as trained hold the optimizer's state too"
        )
        for column in ("model", "heads kept", "neurons", "BLEU", "parameters", "megabytes", "tokens/s"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for line in lines:
            table.add_row(*line)
        return table, bleu

    def _python(self, script: str, *arguments: object) -> str:
        return self._run([sys.executable, str(Path(__file__).parent / script), *map(str, arguments)], None)

    def _command(self, name: str, *arguments: object, log: Path | None = None) -> str:
        """Runs a console command of this environment, printing it first; returns what it printed."""
        return self._run([str(Path(sys.executable).parent / name), *map(str, arguments)], log)

    def _run(self, command: list[str], log: Path | None) -> str:
        shown = [Path(command[0]).name, *command[1:]]
        print(f"$ {shlex.join(shown)}", flush=True)
        finished = self.out / MARKER / hashlib.sha256("\0".join(shown).encode()).hexdigest()[:16]
        if finished.exists():
            return finished.read_text(encoding="utf-8")
        started = time.monotonic()
        with subprocess.Popen(
            command,
            env=ONE_THREAD,
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                printed, _ = process.communicate()
            except BaseException:  # the command removes what it has begun, in the time that it has for that
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                raise
        if log is not None:
            log.write_text(printed, encoding="utf-8")
        if process.returncode != 0:
            tail = "\n".join(printed.strip().splitlines()[-5:])
            raise Refusal(f"{shown[0]} must succeed, but ended with code {process.returncode}:\n{tail}")
        if shown[0] == "fairseq-dsp-prune":
            print(printed)
        print(f"  {time.monotonic() - started:.0f} seconds", flush=True)
        finished.write_text(printed, encoding="utf-8")
        return printed


def model_of(path: Path) -> Any:
    """The model of a checkpoint."""
    return load_model(read_checkpoint(str(path)))


def main() -> None:
    """Runs the command line."""
    with as_command():
        options = get_parser().parse_args()
        with refused_disk(options.output):
            Demo(options).run()


if __name__ == "__main__":
    main()
