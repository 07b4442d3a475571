"""Looking at data before anything is trained on it: `chatsmith data check`, `chatsmith data show`, and the report's."""
