"""Preparation: converts a source of clips to a prepared folder."""
