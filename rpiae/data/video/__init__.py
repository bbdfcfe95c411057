"""Videos: files and folders of frames as one thing, read in bounded memory, and written."""
