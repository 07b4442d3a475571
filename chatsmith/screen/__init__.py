"""What a person sees in a terminal: text made harmless, lines, live curves."""
