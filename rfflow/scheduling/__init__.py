"""Who trains next."""
