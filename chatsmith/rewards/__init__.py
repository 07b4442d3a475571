"""Rewards that are ready: named in `rl.rewards`, read from the answer and from the row of the data that it answers."""
