"""Voices of other trainers, in and out."""
