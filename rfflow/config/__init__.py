"""What is configured, read and checked; no torch."""
