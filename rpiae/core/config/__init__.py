"""Configs as plain data: fields, bases of parts, recipes, the converter, and what a result depends on."""
