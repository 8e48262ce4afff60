"""Self-checks, golden-value comparison, benchmarks and replay of non-finite updates."""
