"""Ranks: launch, runtime, heartbeats, stragglers, shutdown."""
