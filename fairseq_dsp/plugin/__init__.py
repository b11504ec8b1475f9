"""What fairseq sees: architectures, task, criterion and optimizer, and what they ask of options and states."""
