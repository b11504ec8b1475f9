"""What must be there before anything else is imported: versions that are supported, and loading that runs no code."""
