"""Models by name: the catalogue, and fetching what it lists."""
