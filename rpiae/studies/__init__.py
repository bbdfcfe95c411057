"""Studies of ablations: what they measured, and its report."""
