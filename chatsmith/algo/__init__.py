"""The mathematics: pure functions from tensors to tensors. Knows torch and nothing else of chatsmith."""
