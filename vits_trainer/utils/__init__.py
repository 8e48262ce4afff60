"""Helpers that know nothing of voices."""
