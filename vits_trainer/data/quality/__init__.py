"""Checks of prepared data: measurements of every clip, and what is suspicious in them."""
