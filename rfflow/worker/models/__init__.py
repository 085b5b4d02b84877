"""Base models, tokenizers and heads, loaded once and shared."""
