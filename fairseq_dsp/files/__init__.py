"""Files and folders: outputs that are whole or not there, checkpoints, data folders, what is asked of the values in a file."""
