"""Measures models side by side: how fast, how large, and how much of what the arithmetic promises. Called by `cli.bench`."""
