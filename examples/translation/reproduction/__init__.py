"""Parts of reproduce.py: presets, the plan of runs, running and resuming, measuring, results."""
