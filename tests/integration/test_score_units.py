"""`fairseq-dsp-score --units`, and what `fairseq-dsp-prune` makes of scores of neurons, as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import HEADS, Result, assert_refused, generate, heads_in, load, prune, run
from measured import made_up_costs

from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import costs_of, measured_costs, sizes_of
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.units.costs import Sentence
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.groups import part_of, with_all_of
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.score_file import read_scores

SCORE = "fairseq_dsp.cli.score"
HEADS_TEXT = "enc:11.11/dec:11.11/cross:11.11"


def score(data: Any, path: Any, output: Path, *extra: Any, scorer: str, ok: bool = True) -> Result:
    subset = ["--subset", "valid"] if scorer in SCORERS and SCORERS[scorer].reads_data else []
    done = run(
        SCORE, data, "--path", path, "--scorer", scorer, "--output", output, "--cpu", *subset, *extra,
        folder=output.parent,
    )  # fmt: skip
    assert not ok or done.code == 0, done.err[-3000:]
    return done


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


class TestKinds:
    @pytest.mark.parametrize("scorer", [name for name, scorer in SCORERS.items() if scorer.heads_alone])
    def test_what_reads_attention_scores_heads_alone(self, scorer, data, dense, tmp_path):
        done = score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", scorer=scorer, ok=False)
        words = f"`--units` must be heads for `--scorer {scorer}`, which reads attention, but is heads,ffn."
        assert_refused(done, words, reasons=2)  # it lacks an option of its own too

    @pytest.mark.parametrize("scorer", [name for name, scorer in SCORERS.items() if not scorer.heads_alone])
    def test_heads_and_neurons_one_by_one_are_scored_by_every_scorer(self, scorer, data, dense, tmp_path):
        done = score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", scorer=scorer)
        found = content(tmp_path / "scores.json")
        full = "/".join(f"ffn-{side}:{'1' * 16}.{'1' * 16}" for side in ("enc", "dec"))
        assert found["layout"] == f"{HEADS_TEXT}/{full}"
        assert len(found["scores"]) == HEADS + 64
        assert (found["format"], found["units"]) == (2, ["heads", "ffn"])
        assert found["comparable"] == (scorer not in ("gradient", "magnitude"))
        assert done.out.startswith(f"scored {HEADS} heads and 64 neuron groups of ")
        assert ("do not compare" in done.out) == (not found["comparable"])

    def test_groups_may_be_larger_and_a_kind_alone(self, data, dense, tmp_path):
        options = ["--units", "ffn", "--ffn-group", 8]
        score(data, dense, tmp_path / "scores.json", *options, scorer="magnitude")
        found = content(tmp_path / "scores.json")
        assert found["layout"] == f"{HEADS_TEXT}/ffn-enc:11.11/ffn-dec:11.11"
        assert (found["units"], len(found["scores"])) == (["ffn"], 8)

    def test_of_heads_alone_the_file_is_what_it_was(self, data, dense, tmp_path):
        for name, extra in (("one", []), ("two", ["--units", "heads"])):
            score(data, dense, tmp_path / name, *extra, scorer="fisher")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert content(tmp_path / "one")["format"] == 1
        score(data, dense, tmp_path / "both", "--units", "ffn,heads", scorer="gradient")
        score(data, dense, tmp_path / "heads", scorer="gradient")
        assert content(tmp_path / "both")["scores"][:HEADS] == pytest.approx(content(tmp_path / "heads")["scores"])

    def test_scores_of_all_units_serve_a_budget_of_heads_alone(self, data, dense, tmp_path):
        for name, units in (("both", "heads,ffn"), ("heads", "heads")):
            score(data, dense, tmp_path / name, "--units", units, scorer="gradient")
            prune(dense, tmp_path / f"{name}.pt", "--scores", tmp_path / name, "--unpruned-heads", 5)
        one, two = (load(tmp_path / f"{name}.pt") for name in ("both", "heads"))
        assert one["cfg"]["model"].head_layout == two["cfg"]["model"].head_layout
        assert one["fairseq_dsp"] == two["fairseq_dsp"]

    def test_a_rewritten_model_is_scored_in_its_own_groups(self, data, dense, tmp_path):
        layout = "enc:10.11/dec:11.01/cross:11.10/ffn-enc:1011.0000/ffn-dec:0110.1111"
        prune(dense, tmp_path / "small.pt", "--layout", layout)
        score(data, tmp_path / "small.pt", tmp_path / "scores.json", "--units", "heads,ffn", scorer="fisher")
        found = content(tmp_path / "scores.json")
        assert (found["layout"], len(found["scores"])) == (layout, 9 + 9)
        done = score(
            data, tmp_path / "small.pt", tmp_path / "no", "--units", "ffn", "--ffn-group", 2, scorer="fisher", ok=False
        )
        assert_refused(done, "`--ffn-group` must be 4, as the checkpoint's neurons were pruned, but is 2")
        score(data, tmp_path / "small.pt", tmp_path / "heads.json", scorer="fisher")
        assert content(tmp_path / "heads.json")["units"] == ["heads"]
        prune(tmp_path / "small.pt", tmp_path / "4.pt", "--scores", tmp_path / "heads.json", "--unpruned-heads", 4)
        assert heads_in(tmp_path / "4.pt") == 4
        kept = Layout.parse(load(tmp_path / "4.pt")["cfg"]["model"].head_layout)
        assert str(kept).endswith("ffn-enc:1011.0000/ffn-dec:0110.1111")

    def test_again_after_every_few_units_gives_an_order(self, data, dense, tmp_path):
        options = ["--units", "heads,ffn", "--ffn-group", 8, "--iterative", 7]
        score(data, dense, tmp_path / "scores.json", *options, scorer="fisher")
        assert sorted(content(tmp_path / "scores.json")["order"]) == list(range(HEADS + 8))


class TestBudgets:
    def counts(self, path: Path) -> tuple[int, int]:
        """Heads and neurons that a rewritten checkpoint keeps."""
        layout = Layout.parse(load(path)["fairseq_dsp"]["layout"])
        heads = part_of(layout, ["heads"]).count
        return heads, layout.count - heads

    @pytest.mark.parametrize("scorer", ["fisher", "joint-fisher", "random"])
    @pytest.mark.parametrize("measure", ["parameters", "macs"])
    def test_one_is_spent_on_all_kinds_and_met(self, measure, scorer, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", scorer=scorer)
        options = ["--scores", tmp_path / "scores.json", "--budget", f"{measure}=0.8"]
        options += ["--sentence", "9,8,5"] if measure == "macs" else []
        done = prune(dense, tmp_path / "small.pt", *options)
        model, small = (load_model(read_checkpoint(str(path))) for path in (dense, tmp_path / "small.pt"))
        layout = Layout.parse(load(tmp_path / "small.pt")["fairseq_dsp"]["layout"])
        costs = costs_of(model, measure, Sentence(9, 8, 5), with_all_of(model.layout, layout.grid))
        spent = costs.rest + costs.of(layout)
        assert spent <= 0.8 * costs.dense < spent + costs.cheapest_off(layout)
        if measure == "parameters":
            assert small.weight_count() == spent
        assert f"budget {measure}=0.8: at most" in done.out
        assert generate(data, tmp_path / "small.pt", folder=tmp_path).hypotheses()

    @pytest.mark.parametrize("scorer", ["magnitude", "fisher"])
    def test_one_for_each_kind_is_met_by_every_scorer(self, scorer, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", scorer=scorer)
        prune(dense, tmp_path / "small.pt", "--scores", tmp_path / "scores.json", "--budget", "ffn=0.5,heads=5")
        assert self.counts(tmp_path / "small.pt") == (5, 32)
        found = read_scores(str(tmp_path / "scores.json"))
        floors = floors_of(found.chosen.grid, 1)
        wanted = found.keep_top_of_kinds({"heads": 5, "ffn": 32}, floors)
        assert load(tmp_path / "small.pt")["fairseq_dsp"]["layout"] == str(wanted)

    def test_a_count_of_all_units_is_met(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", "--ffn-group", 8, scorer="fisher")
        prune(dense, tmp_path / "small.pt", "--scores", tmp_path / "scores.json", "--budget", 9)
        assert sum(self.counts(tmp_path / "small.pt")) == 9

    def test_kinds_that_are_not_named_or_not_scored_stay(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "both.json", "--units", "heads,ffn", scorer="fisher")
        score(data, dense, tmp_path / "ffn.json", "--units", "ffn", scorer="fisher")
        for name, file, budget, wanted in (
            ("one", "both", "heads=5", (5, 0)),  # without neurons among its units: a file of heads alone
            ("two", "both", "ffn=20", (HEADS, 20)),
            ("three", "ffn", "20", (HEADS, 20)),
            ("four", "ffn", "ffn=20", (HEADS, 20)),
        ):
            prune(dense, tmp_path / f"{name}.pt", "--scores", tmp_path / f"{file}.json", "--budget", budget)
            assert self.counts(tmp_path / f"{name}.pt") == wanted
        assert load(tmp_path / "one.pt")["fairseq_dsp"]["format"] == 1
        prune(dense, tmp_path / "five.pt", "--scores", tmp_path / "ffn.json", "--budget", "parameters=0.9")
        heads, neurons = self.counts(tmp_path / "five.pt")
        assert heads == HEADS
        assert 0 < neurons < 64

    @pytest.mark.parametrize("budget", ["20", "0.5", "parameters=0.5"])
    def test_one_for_kinds_that_do_not_compare_is_refused(self, budget, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "heads,ffn", scorer="magnitude")
        options = ["--scores", tmp_path / "scores.json", "--budget", budget]
        done = prune(dense, tmp_path / "no.pt", *options, ok=False)
        assert_refused(
            done, "`--budget` must give each kind of unit its own budget (heads=K,ffn=K)", f"but is {budget}"
        )

    @pytest.mark.parametrize(
        ("budget", "words"),
        [
            ("heads=5", "`--budget` must name the kinds that are chosen (ffn), but names heads"),
            ("ffn=65", "`--budget` must be between 0 and 64"),
            ("parameters=0.01", "must be at least what no unit costs"),
        ],
    )
    def test_that_cannot_be_met_are_refused(self, budget, words, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "ffn", scorer="magnitude")
        options = ["--scores", tmp_path / "scores.json", "--budget", budget]
        assert_refused(prune(dense, tmp_path / "no.pt", *options, ok=False), words)


class TestSublayers:
    @pytest.mark.parametrize("scorer", [name for name, scorer in SCORERS.items() if not scorer.heads_alone])
    def test_are_scored_by_every_scorer_and_kept_as_a_whole(self, scorer, data, dense, tmp_path):
        done = score(data, dense, tmp_path / "scores.json", "--units", "sublayers", scorer=scorer)
        assert done.out.startswith("scored 10 sublayers of ")
        assert "do not compare" not in done.out
        found = content(tmp_path / "scores.json")
        assert (found["format"], found["units"], len(found["scores"])) == (2, ["sublayers"], 10)
        assert found["layout"] == f"{HEADS_TEXT}/ffn-enc:1.1/ffn-dec:1.1"
        prune(dense, tmp_path / "small.pt", "--scores", tmp_path / "scores.json", "--budget", 6)
        layout = Layout.parse(load(tmp_path / "small.pt")["fairseq_dsp"]["layout"])
        layout = with_all_of(layout, Layout.parse(found["layout"]).grid)
        kept = {site: len(layout.units(site)) for site in layout.grid.sites}
        assert all(kept[site] in (0, count) for site, count in layout.grid.counts)
        assert sum(count > 0 for count in kept.values()) == 6
        ranking = dict(
            zip(layout.grid.sites, read_scores(str(tmp_path / "scores.json")).ranking().tolist(), strict=True)
        )
        best = sorted(ranking, key=ranking.__getitem__, reverse=True)[:6]
        if any(site.stack == "cross" for site in best):
            assert {site for site, count in kept.items() if count} == set(best)
        assert generate(data, tmp_path / "small.pt", folder=tmp_path).hypotheses()

    @pytest.mark.parametrize("budget", ["parameters=0.7", "macs=0.7", "sublayers=0.4"])
    def test_every_budget_is_met_and_accounted_for(self, budget, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "sublayers", scorer="fisher")
        options = ["--scores", tmp_path / "scores.json", "--budget", budget]
        measure, _, share = budget.partition("=")
        done = prune(dense, tmp_path / "small.pt", *options, *(["--sentence", "9,8,5"] if measure == "macs" else []))
        layout = Layout.parse(load(tmp_path / "small.pt")["fairseq_dsp"]["layout"])
        empty = [site for site in layout.grid.sites if not layout.units(site)]
        if measure == "sublayers":
            assert len(empty) == 6
            assert "kept: 4 units, 40.0%; slack 0 units" in done.out
            return
        model = load_model(read_checkpoint(str(dense)))
        costs = costs_of(model, measure, Sentence(9, 8, 5), with_all_of(model.layout, layout.grid))
        tables = dict(zip(layout.grid.sites, costs.tables, strict=True))
        spent = costs.rest + costs.of(layout)
        assert spent <= float(share) * costs.dense < spent + min(tables[site][-1] for site in empty)
        if measure == "parameters":
            assert load_model(read_checkpoint(str(tmp_path / "small.pt"))).weight_count() == spent

    def test_a_budget_of_measured_time_is_met(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "sublayers", scorer="fisher")
        model = load_model(read_checkpoint(str(dense)))
        file = made_up_costs(sizes_of(model))
        (tmp_path / "costs.json").write_text(file.text())
        options = ["--scores", tmp_path / "scores.json", "--budget", "latency=0.8", "--costs", tmp_path / "costs.json"]
        prune(dense, tmp_path / "small.pt", *options)
        layout = Layout.parse(load(tmp_path / "small.pt")["fairseq_dsp"]["layout"])
        costs = measured_costs(model, file, with_all_of(model.layout, layout.grid))
        off = [table[-1] for site, table in zip(layout.grid.sites, costs.tables, strict=True) if not layout.units(site)]
        spent = costs.rest + costs.of(layout)
        assert all(len(layout.units(site)) in (0, count) for site, count in layout.grid.counts)
        assert spent <= 0.8 * costs.dense < spent + min(off) + 1

    def test_that_are_scored_again_give_an_order_and_what_is_cut_can_be_fitted(self, data, dense, tmp_path):
        options = ["--units", "sublayers", "--iterative", 3]
        score(data, dense, tmp_path / "scores.json", *options, scorer="fisher")
        assert sorted(content(tmp_path / "scores.json")["order"]) == list(range(10))
        done = prune(dense, tmp_path / "s.pt", "--scores", tmp_path / "scores.json", "--budget", 6, "--rescale", data)
        losses = [float(number) for number in re.findall(r"(\d+\.\d+)", done.out.partition("loss")[2])[:3]]
        assert losses[2] < losses[1]

    def test_what_lost_some_is_scored_again_without_them(self, data, dense, tmp_path):
        prune(
            dense,
            tmp_path / "small.pt",
            "--layout",
            "enc:11.00/dec:11.11/cross:01.11/ffn-enc:1111.0000/ffn-dec:0110.1111",
        )
        score(data, tmp_path / "small.pt", tmp_path / "scores.json", "--units", "sublayers", scorer="magnitude")
        assert len(content(tmp_path / "scores.json")["scores"]) == 8
        prune(tmp_path / "small.pt", tmp_path / "smaller.pt", "--scores", tmp_path / "scores.json", "--budget", 5)
        layout = Layout.parse(load(tmp_path / "smaller.pt")["fairseq_dsp"]["layout"])
        assert sum(1 for site in layout.grid.sites if layout.units(site)) == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                ["--units", "layers"],
                "`--units` must be kinds of units (heads, ffn, sublayers) with commas between, but is layers",
            ),
            (["--units", "heads,heads"], "`--units` must be kinds of units (heads, ffn, sublayers)"),
            (["--units", ""], "`--units` must be kinds of units (heads, ffn, sublayers)"),
            (["--units", "heads,sublayers"], "`--units` must not name sublayers beside other kinds"),
            (["--ffn-group", 4], "`--ffn-group` must come with `--units ffn`, but is 4"),
            (["--units", "ffn", "--ffn-group", 0], "`--ffn-group`"),
            (["--units", "ffn", "--ffn-group", 5], "`--ffn-group` must divide the 16 neurons"),
        ],
    )
    def test_name_the_option_and_its_value(self, options, words, data, dense, tmp_path):
        done = score(data, dense, tmp_path / "no", *options, scorer="fisher", ok=False)
        assert_refused(done, words)
        assert not (tmp_path / "no").exists()

    @pytest.mark.parametrize("units", ["heads,ffn", "ffn,heads"])
    def test_of_an_order_over_kinds_that_do_not_compare(self, units, data, dense, tmp_path):
        options = ["--units", units, "--ffn-group", 8, "--iterative", 7]
        done = score(data, dense, tmp_path / "no", *options, scorer="gradient", ok=False)
        assert_refused(
            done,
            "`--iterative` must not be given for several kinds of units by `--scorer gradient`",
            f"is 7 for {units}",
        )
        score(data, dense, tmp_path / "ffn", "--units", "ffn", *options[2:], scorer="gradient")
        assert sorted(content(tmp_path / "ffn")["order"]) == list(range(8))

    def test_of_a_norm_over_neurons(self, data, dense, tmp_path):
        state = torch.load(dense, weights_only=False)
        state["cfg"]["model"].scale_fc = True
        for layer in (0, 1):
            for name in ("weight", "bias"):
                state["model"][f"decoder.layers.{layer}.ffn_layernorm.{name}"] = torch.ones(16)
        torch.save(state, tmp_path / "normed.pt")
        done = score(data, tmp_path / "normed.pt", tmp_path / "no", "--units", "ffn", scorer="magnitude", ok=False)
        assert_refused(done, "scale_fc")

    def test_of_scores_of_neurons_alone_for_a_budget_of_heads(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--units", "ffn", scorer="magnitude")
        options = ["--scores", tmp_path / "scores.json", "--unpruned-heads", 4]
        done = prune(dense, tmp_path / "no.pt", *options, ok=False)
        assert_refused(done, "`--unpruned-heads` must come with scores of heads, but ffn")


def test_rescaling_fits_feed_forward_networks_too(data, dense, tmp_path):
    layout = f"{HEADS_TEXT}/ffn-enc:1010.0000/ffn-dec:0011.0100"
    prune(dense, tmp_path / "cut.pt", "--layout", layout)
    done = prune(dense, tmp_path / "rescaled.pt", "--layout", layout, "--rescale", data)
    whole, cut, rescaled = map(float, re.findall(r"(\d+\.\d+) (?:with all heads|cut|rescaled)", done.out))
    assert whole < rescaled < cut
    states = [load(tmp_path / f"{name}.pt")["model"] for name in ("cut", "rescaled")]
    assert {name: value.shape for name, value in states[0].items()} == {
        name: value.shape for name, value in states[1].items()
    }
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    layers = [f"{side}.layers.{layer}.fc2" for side in ("encoder", "decoder") for layer in (0, 1)]
    assert {name for name in changed if ".fc2." not in name} == set()
    assert {name.rpartition(".")[0] for name in changed} == set(layers)
    assert "H-0" in generate(data, tmp_path / "rescaled.pt", folder=tmp_path).out
