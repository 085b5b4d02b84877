"""What is saved, and how an experiment is found again after a crash."""
