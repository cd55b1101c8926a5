"""Merging of state dicts: arithmetic alone, below both methods."""
