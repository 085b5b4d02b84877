"""Rows: read from files and the hub, their columns checked, before a trainer sees them."""
