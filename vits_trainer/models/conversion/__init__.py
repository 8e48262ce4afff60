"""Import and export of voices in the formats of other programs."""
