"""What our commands write, as far as it counts, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq_dsp.analysis.report import FIGURES, MARKDOWN, PAGE
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.building import load_model, ungated
from fairseq_dsp.units.score_file import read_scores
from tests.campaigns.cases import Case

Output = dict[str, Any]  # name of a part -> the part


def read(path: Path, command: str) -> Output:
    """The parts of an output that must be the same whenever they are made of the same.

    Args:
        path: the output.
        command: that wrote it; a report has no such parts, for nothing but text is damaged in what it is made of.
    """
    if command == "report":
        return {}
    if command == "score":
        return {"scores": read_scores(str(path))}
    state = torch.load(path, weights_only=True)
    layout = load_model(read_checkpoint(str(path))).deployed_layout()
    return {"weights": state["model"], "layout": layout, "options": state["cfg"]}


def wrong(path: Path, case: Case, expected: Mapping[tuple[str, ...], Output]) -> list[str]:
    """What is wrong with what a command wrote.

    Args:
        path: the output.
        case: what it was made of.
        expected: by `Case.same`, what the undamaged input gives; nothing where that is refused.
    """
    if case.check is not None:
        return case.check(path)
    if case.name == "report":
        return _wrong_report(path)
    try:
        output = read(path, case.name)
    except (Exception, SystemExit) as error:
        return [f"wrote what cannot be read: {error}"]
    failures = _wrong_scores(output, case.reads) if case.name == "score" else _wrong_checkpoint(output, case.heads)
    if case.same and case.same not in expected:
        failures.append("took a damaged file, the like of which is refused when it is whole")
    elif case.same:
        other = [name for name, part in expected[case.same].items() if not _equal(output[name], part)]
        failures += [f"wrote other {name} than of the undamaged file" for name in other]
    return failures


def _wrong_checkpoint(output: Output, heads: int | None) -> list[str]:
    weights, layout = output["weights"], output["layout"]
    failures = [f"wrote {name}, not finite" for name, value in weights.items() if not bool(value.isfinite().all())]
    if heads is not None and layout.count != heads:
        failures.append(f"wrote {layout.count} heads instead of {heads}")
    return failures


def _wrong_scores(output: Output, checkpoint: str) -> list[str]:
    """Reading has refused a file without a finite score for each of its heads; here, whether they are the model's."""
    scored, layout = output["scores"].layout, ungated(checkpoint)[0].layout  # some options do not matter to scores
    return [] if scored == layout else [f"scored {scored} of a model with {layout}"]


def _wrong_report(folder: Path) -> list[str]:
    names = {path.name for path in folder.iterdir()}
    if names != {MARKDOWN, PAGE, FIGURES}:
        return [f"wrote {sorted(names)}"]
    page, text = ((folder / name).read_text(encoding="utf-8") for name in (PAGE, MARKDOWN))
    figures = list((folder / FIGURES).iterdir())
    failures = [f"wrote {path.name}, which is empty" for path in figures if not path.stat().st_size]
    failures += [f"wrote {path.name}, which {MARKDOWN} does not show" for path in figures if path.stem not in text]
    if not page.rstrip().endswith("</html>"):
        failures.append(f"wrote a {PAGE} that is not whole")
    return failures


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and any(isinstance(value, torch.Tensor) for value in one.values()):
        return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    return one == other
