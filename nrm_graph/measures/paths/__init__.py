"""Strongest walks and unit paths, each with what bounds the rest."""
