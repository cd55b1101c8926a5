"""Fuzzing of everything that reads a file somebody else may have written."""
