"""From checkpoint to checkpoint: building the model, rewriting, averaging, stock fairseq's form."""
