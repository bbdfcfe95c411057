"""Names to parts: entries, registries, plugins."""
