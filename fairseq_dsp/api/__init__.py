"""The Python API, and what the commands call: one function a command. Nothing here prints; docs/api.md is the page for users.

The public names are those of `fairseq_dsp.__all__`, imported from the package itself. Everything else is private.
"""
