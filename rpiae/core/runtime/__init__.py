"""What surrounds a computation: files, names, devices, processes, draws, downloads, signals."""
