"""Weights that users bring: one folder that holds them, a table of the public ones, and how they are fetched."""
