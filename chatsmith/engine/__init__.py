"""Generation with the policy's own weights. Sees requests and models; knows nothing of stages, losses or data."""
