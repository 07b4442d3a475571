"""A run directory: its record, its metrics, the stages that work in it."""
