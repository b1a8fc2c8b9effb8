"""Circuits: the relevance of many inputs at once."""
