"""Proofs, benchmarks and replays."""
