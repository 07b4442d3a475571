"""The built-in task world: generated instructions in English and Chinese with a judge in code."""
