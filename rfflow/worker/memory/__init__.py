"""What fits where: estimates, moves between device, host and disk."""
