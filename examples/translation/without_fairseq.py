"""Lets scripts import `fairseq_dsp.errors` and `fairseq_dsp.files.output` without fairseq, which would take seconds or is not installed.

    import without_fairseq  # before the line that imports them

The package itself is a plug-in, and loads fairseq. These parts need nothing but Python; loaded from their files, they are the same
modules for whoever imports the package later.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for _name in ("errors", "files.hidden_folder", "files.output"):  # in this order: each imports those before it
    _module = f"fairseq_dsp.{_name}"
    if _module not in sys.modules:
        _path = Path(__file__).resolve().parents[2] / "fairseq_dsp" / f"{_name.replace('.', '/')}.py"
        _spec = importlib.util.spec_from_file_location(_module, _path)
        assert _spec is not None
        assert _spec.loader is not None
        sys.modules[_module] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_module])
