"""Configurations of the commands. Imports no torch."""
