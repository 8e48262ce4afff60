"""General utilities, independent of voices."""
