"""Parts of multilingual.py: presets, text, plan of the runs, running them, measuring, the report."""
