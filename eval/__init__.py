"""Numbers about a running pipeline."""
