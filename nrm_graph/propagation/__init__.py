"""Activations of one run, the relevance pass through them, its adjoint, and what routing does."""
