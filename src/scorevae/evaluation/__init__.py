"""What a trained pair is worth: metrics, parts of the analysis, the report."""
