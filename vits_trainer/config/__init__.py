"""Configuration dataclasses of the commands. Imports no torch."""
