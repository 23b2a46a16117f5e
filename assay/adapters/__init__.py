"""Engines of other people's libraries, as the judge wants them: one module for each library."""
