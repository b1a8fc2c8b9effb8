"""Answers by other means: enumerated walks and dense matrices."""
