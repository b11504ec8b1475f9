"""What torch runs: attention with gates, the gates, the loss, and surgery on them; nothing of fairseq's plumbing."""
