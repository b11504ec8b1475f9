"""What runs leave behind, read and shown: translations, results, training logs, figures, reports. Optional packages are
imported where they are needed."""
