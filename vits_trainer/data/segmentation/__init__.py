"""Sources of clips: the formats of data sets that prepare_data reads."""
