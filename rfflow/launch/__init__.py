"""From what people type to an experiment."""
