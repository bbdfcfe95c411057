"""What other projects wrote, as ours: their files, their names and their options."""
