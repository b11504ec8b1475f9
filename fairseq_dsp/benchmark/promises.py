"""What a costs file promises of models, to stand beside what is measured (`fairseq-dsp-bench --promised`). Called by `cli/bench`."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_dsp.benchmark.candidates import Candidate, Facts
from fairseq_dsp.benchmark.comparison import engine_of, processor_of
from fairseq_dsp.benchmark.sentences import batch_of
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.cost_file import Conditions, CostFile
from fairseq_dsp.units.groups import group_of, has_neurons
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.neurons import NEURONS

OPTION = "--promised"


def conditions_of(engine: str, settings: Settings, case: Case) -> Conditions:
    """Under what `compare` measures generation.

    Args:
        engine: as a row has it.
    """
    tokens = batch_of(settings, case.batch or 1)["net_input"]["src_lengths"].float().mean().item()
    return Conditions(
        machine=processor_of(settings),
        device=settings.device,
        threads=settings.threads,
        runtime=engine,
        dtype=settings.dtype,
        batch=case.batch or 1,
        beam=case.beam or 1,
        source=round(tokens),
        target=(settings.output_length or 0) + 1,
    )


@dataclass(frozen=True)
class Promise:
    """A costs file, and the settings of a run that is set beside it."""

    file: CostFile
    settings: Settings

    def seconds(self, candidate: Candidate, facts: Facts, case: Case) -> float | None:
        """What a batch takes, by the file; None where the file is of other conditions."""
        conditions = conditions_of(engine_of(candidate), self.settings, case)
        if case.workload != "generate" or conditions != self.file.conditions:
            return None
        return case.batch * seconds_of(self.file, facts) if case.batch else None

    def refuse_other(self, measured: list[tuple[Candidate, Facts]], cases: list[Case]) -> None:
        """Raises:
        Refusal: a model has other sizes, or nothing is measured under the file's conditions; all reasons at once.
        """
        reasons = [
            reason.replace("the checkpoint's is", f"{candidate.text} has")
            for candidate, facts in measured
            for reason in self.file.objections_to_sizes(facts.sizes, OPTION)
        ]
        found = [
            self.file.objections_to_conditions(conditions_of(engine, self.settings, case), OPTION)
            for case in cases
            if case.workload == "generate"
            for engine in dict.fromkeys(engine_of(candidate) for candidate, _ in measured)
        ]
        reasons += min(found, key=len, default=[f"`{OPTION}` is of generation, which `--workloads` must have."])
        if reasons:
            raise Refusal(*dict.fromkeys(reasons))


def seconds_of(file: CostFile, facts: Facts) -> float:
    """Seconds a sentence that a file promises of a model of its sizes."""
    layout = Layout.parse(facts.layout)
    whole = layout.count == layout.grid.total
    if not facts.ours or (whole and file.conditions.runtime != "fairseq"):  # where ours has no attention of its own
        return file.dense
    neurons = {stack.name: facts.sizes[stack.name] for stack in NEURONS.stacks}
    group = group_of(layout.grid, neurons, OPTION) if has_neurons(layout.grid) else 1
    costs = file.costs(layout.grid, group)
    return (costs.rest + costs.of(layout)) * costs.scale
