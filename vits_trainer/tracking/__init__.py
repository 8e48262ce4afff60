"""Metrics, plots, reports, model cards."""
