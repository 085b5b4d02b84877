"""A reward that both sides can import: how near an answer is to twenty characters."""


def length(completions, **_):
    return [-abs(20 - len(text)) / 20 for text in completions]
