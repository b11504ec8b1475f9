"""Heads, which of them are kept, and the maths of choosing: data and functions that know no model and no fairseq."""
