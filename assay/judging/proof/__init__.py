"""The judge before its own court: mutants applied to the engines from outside, gates that must notice, and the score."""
