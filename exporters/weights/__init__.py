"""Weights: where those of a model are read from, row by row."""
