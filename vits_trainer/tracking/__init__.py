"""Metric logging, plots, reports and model cards."""
