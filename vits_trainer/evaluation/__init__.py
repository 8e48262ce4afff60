"""Speech synthesis and objective evaluation of voices."""
