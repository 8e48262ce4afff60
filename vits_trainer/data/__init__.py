"""Preparation of recordings, datasets, samplers and DataLoaders."""
