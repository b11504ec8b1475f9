"""fairseq-dsp-bench: its statistics, what it loads, its rows, its refusals. No time is asserted anywhere."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict

import pytest
import torch
from fairseq.modules import MultiheadAttention
from fairseq.sequence_generator import SequenceGenerator

from fairseq_dsp.benchmark import pruning
from fairseq_dsp.benchmark.candidates import Candidate, dictionaries_of, facts_of, labels, options_of
from fairseq_dsp.benchmark.layouts import packed
from fairseq_dsp.benchmark.measuring import paired_ratio
from fairseq_dsp.benchmark.sentences import batch_of
from fairseq_dsp.benchmark.serving import translate
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.training import trainer_of
from fairseq_dsp.benchmark.workloads import WORKLOADS
from fairseq_dsp.cli.bench import cli_main, main
from fairseq_dsp.errors import Refusal
from fairseq_dsp.guards.versions import drop_fused_encoder_copies, settle_device_marks
from fairseq_dsp.modules.attention import PrunableAttention

DENSE = "transformer_tiny:words=30/40"
SMALL = "dsp_transformer_tiny:spread=6,words=30/40"
GATED = "dsp_transformer_tiny:packed=5,gated,words=30/40"
PIPELINED = "dsp_transformer_tiny:packed=5,gated,pipelined,words=30/40"
_SIZES = {"layers": 2, "attention_heads": 2, "embed_dim": 64, "ffn_embed_dim": 64}
QUICK = "--batch-size 2 --beam 2 --length 4 --max-tokens 30 --pairs 2 --warmup 0 --cpu".split()


@pytest.mark.parametrize("as_file", [False, True])
def test_the_baseline_is_stock_fairseq(as_file, tmp_path):
    """Its attention, its search and its training parts: nothing of ours."""
    candidate = Candidate(DENSE, random=True)
    if as_file:
        model = candidate.build()
        torch.save({"model": model.state_dict(), "args": None, "cfg": {"model": _options()}}, tmp_path / "dense.pt")
        candidate = Candidate(str(tmp_path / "dense.pt"))
        built, given = (dict(each.state_dict()) for each in (candidate.build(), model))
        for state in (built, given):
            drop_fused_encoder_copies(state)
            settle_device_marks(state)
        torch.testing.assert_close(built, given)
    model = candidate.build()
    attentions = [module for module in model.modules() if hasattr(module, "k_proj")]
    assert len(attentions) == 6
    assert all(type(attention) is MultiheadAttention for attention in attentions)
    assert facts_of(model).heads == facts_of(model).total == 12
    trainer = trainer_of(model, Settings())
    assert {type(part).__module__.split(".")[0] for part in (trainer.task, trainer.criterion, trainer.optimizer)} == {
        "fairseq"
    }


def _options():
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIZES.items()}
    return {"_name": "transformer_tiny", "arch": "transformer_tiny", "share_decoder_input_output_embed": True, **sizes}


@pytest.mark.parametrize("stock", [True, False])
def test_a_checkpoint_in_half_precision_is_measured_in_float32(stock, tmp_path):
    model = Candidate(DENSE if stock else SMALL, random=True).build().half()
    options = _options() if stock else vars(options_of(model))
    torch.save({"model": model.state_dict(), "args": None, "cfg": {"model": options}}, tmp_path / "half.pt")
    built = Candidate(str(tmp_path / "half.pt")).build()
    assert {value.dtype for value in built.parameters()} == {torch.float32}


def test_a_model_in_training_has_our_parts():
    model = Candidate(GATED, random=True).build()
    assert facts_of(model).heads == 5
    assert facts_of(model).phases == ("choosing heads", "heads fixed")
    assert model.deployed_layout() == packed(model.layout.grid, 5)
    trainer = trainer_of(model, Settings())
    assert type(trainer.optimizer).__name__ == "DspAdam"
    assert all(isinstance(m, PrunableAttention) for m in model.modules() if hasattr(m, "k_proj"))
    frozen = Candidate(PIPELINED, random=True).build()
    assert facts_of(frozen).phases == ("pipelined",)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["head_gates.importance"]


def test_rows_of_every_workload(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    models = [DENSE, SMALL, GATED, PIPELINED]
    main(["--random", *models, "--workloads", ",".join(WORKLOADS), *QUICK, "--no-memory", "--json", str(file)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = {name: [(row["model"], row["phase"]) for row in rows if row["workload"] == name] for name in WORKLOADS}
    once = [(model, "") for model in models]
    updates = [*once[:2], (GATED, "choosing heads"), (GATED, "heads fixed"), (PIPELINED, "pipelined")]
    assert found == dict.fromkeys(WORKLOADS, once) | {"update": updates, "mask": once[2:]}
    for row in rows:
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["signature"]["pairs"] == 2
        assert (row["ratio"] is None) == (row["model"] == found[row["workload"]][0][0])
        assert row["workload"] == "mask" or row["tokens_per_second"] > 0
        assert row["peak_bytes"] is None
    flops = {(row["workload"], row["model"]): row["flops"] for row in rows}
    for name in ("encoder", "decoder-step", "generate", "update", "validation"):
        assert flops[name, SMALL] < flops[name, DENSE]
    assert {row["heads"] for row in rows if row["model"] == GATED} == {5}
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("machine ")
    assert "generate, batch 2, beam 2" in printed


def test_ctranslate2_takes_its_turns_in_generation(tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    file = tmp_path / "rows.jsonl"
    models = ["--random", DENSE, SMALL, GATED, "--ctranslate2", "int8", "--workloads", "encoder,generate"]
    main([*models, *QUICK, "--no-memory", "--json", str(file)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["engine"] for row in rows if row["workload"] == "encoder"} == {"fairseq"}
    rows = [row for row in rows if row["workload"] == "generate"]
    assert [row["engine"] for row in rows] == ["fairseq"] * 3 + ["CTranslate2 int8"] * 3
    assert [row["heads"] for row in rows] == [12, 6, 5] * 2
    for row in rows:  # two sentences of four words and an end, in both
        assert row["tokens_per_second"] * row["median"] == pytest.approx(10)
        assert (row["flops"] > 0) == (row["promised"] is not None or row is rows[0]) == (row["engine"] == "fairseq")
    assert [row["ratio"] is None for row in rows] == [True] + [False] * 5
    assert [row["engine_ratio"] is None for row in rows] == [True, False, False] * 2
    for row in rows[1:]:
        first = rows[0] if row["engine"] == "fairseq" else rows[3]
        if row is not first:
            assert row["engine_ratio"] == asdict(paired_ratio(first["seconds"], row["seconds"]))
    assert "within engine" in "".join(capsys.readouterr().out.split("\n"))


def test_ctranslate2_runs_the_checkpoint_that_fairseq_runs(tmp_path):
    pytest.importorskip("ctranslate2")
    model = Candidate("dsp_transformer_tiny:packed=5,words=30/40", True).build()
    torch.save({"model": model.state_dict(), "args": options_of(model)}, tmp_path / "small.pt")
    served = Candidate(str(tmp_path / "small.pt"), ctranslate2="float32").build()
    case, settings = Case("generate", 3, 2), Settings(output_length=None, length=4, words=(30, 40))
    theirs = translate(served, settings, case, "float32").call()
    words = dictionaries_of(model)[1]
    generator = SequenceGenerator([model], words, beam_size=2, max_len_a=0, max_len_b=200)
    ours = [found[0]["tokens"].tolist() for found in generator.generate([model], batch_of(settings, 3))]
    assert theirs == [[words.symbols[word] for word in sentence[:-1]] for sentence in ours]


def test_profiles_name_what_takes_the_time(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    main(["--random", DENSE, SMALL, "--workloads", "encoder", *QUICK, "--no-memory", "--profile", "--json", str(file)])
    printed = capsys.readouterr().out
    for line in file.read_text().splitlines():
        profile = json.loads(line)["profile"]
        assert {"aten::addmm", "aten::native_layer_norm", "outside of operators"} <= set(profile)
        assert list(profile.values()) == sorted(profile.values(), reverse=True)
        assert min(profile.values()) >= 0
        # which operators are among the longest depends on the machine
        assert all(operator.removeprefix("aten::") in printed for operator in list(profile)[:10])


def test_a_layout_may_be_a_file_or_that_of_a_checkpoint(tmp_path):
    known = packed(Candidate(SMALL, True).build().layout.grid, 4)
    text, checkpoint = tmp_path / "learned.txt", tmp_path / "learned.pt"
    text.write_text(f"{known}\n")
    architecture = "dsp_transformer_tiny:words=30/40,layout="
    model = Candidate(f"{architecture}{text}", True).build()
    assert model.layout == known
    torch.save({"model": model.state_dict(), "args": options_of(model)}, checkpoint)
    assert Candidate(f"{architecture}{checkpoint}", True).build().layout == known


def test_memory_is_of_a_process_of_its_own(tmp_path):
    file = tmp_path / "rows.jsonl"
    main(["--random", SMALL, "--workloads", "encoder", *QUICK, "--json", str(file)])
    assert json.loads(file.read_text())["peak_bytes"] > 4 * facts_of(Candidate(SMALL, True).build()).parameters


def test_generation_is_of_the_length_that_was_asked_for(monkeypatch):
    lengths = set()
    generate = SequenceGenerator.generate

    def spied(self, *args, **kwargs):
        found = generate(self, *args, **kwargs)
        lengths.update(len(hypothesis["tokens"]) for sentence in found for hypothesis in sentence)
        return found

    monkeypatch.setattr(SequenceGenerator, "generate", spied)
    main(["--random", DENSE, SMALL, "--workloads", "generate", *QUICK, "--no-memory"])
    assert lengths == {5}  # with its end


def test_the_rewriting_of_made_checkpoints_is_measured(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    forking = multiprocessing.get_context("fork")  # a fresh process would import everything, to make a small file
    monkeypatch.setattr(pruning.multiprocessing, "get_context", lambda kind: forking)
    pruning.main(["--megabytes", "3", "--arch", "dsp_transformer_tiny", "--runs", "1", "--json", str(file)])
    training, weights = (json.loads(line) for line in file.read_text().splitlines())
    assert (training["kind"], weights["kind"]) == pruning.KINDS
    for row in (training, weights):
        assert 2e6 < row["size"] < 4e6
        assert len(row["seconds"]) == 1
        assert row["peak"] > row["rewritten"] > 0
    assert training["rewritten"] < training["size"] / 2  # no optimizer state
    assert "weights only" in capsys.readouterr().out


def test_a_measurement_of_rewriting_that_cannot_be_run_or_kept_is_refused_before_it(tmp_path):
    precious = tmp_path / "rows.jsonl"
    precious.write_text("precious")
    with pytest.raises(Refusal) as refusal:
        pruning.main(["--runs", "0", "--megabytes", "0", "--arch", "transformer_tiny", "--json", str(precious)])
    wanted = (
        "`--megabytes` must be",
        "`--runs` must be at least 1, but is 0.",
        "but is transformer_tiny.",
        "`--force`",
    )
    assert all(words in sentence for words, sentence in zip(wanted, refusal.value.reasons, strict=True))
    assert precious.read_text() == "precious"


def test_labels_tell_files_apart():
    candidates = [Candidate("a/x.pt"), Candidate("b/x.pt"), Candidate("b/y.pt"), Candidate("ARCH:spread=1", True)]
    assert labels(candidates) == ["a/x.pt", "b/x.pt", "y.pt", "ARCH:spread=1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "`--path` or `--random` must name a model, but neither is given."),
        (["--path", "no.pt"], "the checkpoint must be a file, but no.pt does not exist."),
        (["--random", DENSE, "--workloads", "encoder,dance"], "but has 'dance'."),
        (["--random", DENSE, "--pairs", "0"], "`--pairs` must be at least 1, but is 0."),
        (["--random", DENSE, "--pairs", "7,9"], "`--pairs` must be a whole number, but is '7,9'."),
        (
            ["--random", DENSE, "--batch-size", "8,0"],
            "`--batch-size` must be whole numbers of at least 1, but is '8,0'.",
        ),
        (["--random", DENSE, "--cuda"], "`--cuda` needs a GPU that torch can use, but there is none."),
        (["--random", DENSE, "--ctranslate2", "int4"], "but is int4."),
        (["--random", DENSE, "--ctranslate2", "int8", "--workloads", "encoder"], "but `--workloads` has encoder."),
        (["--random", DENSE, "--fp16"], "`--dtype float16` needs a GPU"),
        (["--random", DENSE, "--clock", "cpu", "--threads", "2"], "but there is 2 threads: use wall."),
        (["--random", DENSE, "--data", "nowhere"], "`--output-length` must be given with `--data`"),
        (
            ["--random", DENSE, "--data", "nowhere", "--output-length", "5"],
            "`--data` must be a folder of fairseq-preprocess",
        ),
        (["--random", "lstm"], "`--random` must name a transformer architecture, but lstm is none"),
        (["--random", "transformer_tiny:spread=3"], "`--random` can remove heads of dsp_transformer_tiny alone"),
        (["--random", "dsp_transformer_tiny:spread=13"], "must be a number of heads, 0 to 12, but is 13."),
        (["--random", "dsp_transformer_tiny:gated"], "`--random` must read ARCH"),
        (
            ["--random", "dsp_transformer_tiny:layout=enc:1/dec:1/cross:1"],
            "must have a layout of its architecture's heads",
        ),
    ],
)
def test_refusals(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["fairseq-dsp-bench", *arguments])
    with pytest.raises(SystemExit) as left:
        cli_main()
    printed = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert len(printed) == 1
    assert sentence in printed[0]


def test_refuses_ctranslate2_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal, match="is not installed: pip install"):
        main(["--random", DENSE, "--ctranslate2", "int8"])


def test_refuses_to_overwrite(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("precious")
    with pytest.raises(Refusal, match="--force"):
        main(["--random", DENSE, "--json", str(file)])
    assert file.read_text() == "precious"
