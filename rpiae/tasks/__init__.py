"""What can be trained: one package per task."""
