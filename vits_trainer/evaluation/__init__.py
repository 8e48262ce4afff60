"""Speech of trained voices, and its figures."""
