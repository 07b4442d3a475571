"""A run as one page: verdicts, curves, answers, configuration. It reads files of runs and trains nothing."""
