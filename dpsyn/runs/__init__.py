"""A run on disk, and what reads it."""
