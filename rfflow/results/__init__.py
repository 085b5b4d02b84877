"""What an experiment has left, opened again: listed, shown, compared, talked to and taken away."""
