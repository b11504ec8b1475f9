"""What is asked for, by a user or by a checkpoint: options are read, refused, and resolved to units, layouts and costs."""
