"""How the built-in model is made. Not part of the wheel."""
