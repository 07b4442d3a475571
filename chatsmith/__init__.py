"""chatsmith: your own ChatGPT-style assistant from one command. SFT, reward model, PPO.

The command line is `chatsmith`; in Python, `chatsmith.pipeline.train` runs what a `chatsmith.config.Config` describes.
"""

__version__ = "0.1.0"
