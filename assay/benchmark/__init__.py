"""How fast an engine is, beside another on the same machine."""
