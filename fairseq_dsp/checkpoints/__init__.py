"""From checkpoint to checkpoint: reading, building the model, rewriting, averaging, stock fairseq's form."""
