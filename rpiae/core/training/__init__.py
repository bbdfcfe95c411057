"""The staged trainer and what it is made of."""
