"""The networks, their parts, and their files."""
