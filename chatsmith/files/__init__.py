"""Files as strangers and crashes leave them: what is read within bounds, and the one module that writes."""
