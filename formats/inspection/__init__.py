"""Looking inside a file: which byte is what, statistics of its tensors, checks of their soundness, and differences."""
