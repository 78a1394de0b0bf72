"""On-policy rounds: the model writes and debugs programs, learns from its pairs, and writes the next ones."""
