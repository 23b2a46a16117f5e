"""The judge is judged: mutants applied to the engines from outside, gates that must notice, and the score."""
