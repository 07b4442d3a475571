"""Models: loading, heads, scoring, averaging. Unmodified Hugging Face modules throughout."""
