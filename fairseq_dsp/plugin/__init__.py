"""What fairseq sees: architectures, task, criterion and optimizer."""
