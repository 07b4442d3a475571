"""The three stages. Read one file, know one stage."""
