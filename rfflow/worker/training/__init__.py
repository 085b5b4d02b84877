"""One run: an unmodified trainer inside a coroutine."""
