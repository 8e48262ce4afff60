"""Where clips and texts come from."""
