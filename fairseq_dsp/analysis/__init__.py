"""What runs leave behind, read and shown: translations, figures. Needs matplotlib only where a figure is drawn."""
