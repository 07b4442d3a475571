"""From data anywhere to the records of each stage, and from records to token batches."""
