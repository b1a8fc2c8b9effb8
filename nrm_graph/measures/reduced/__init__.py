"""Reduced graphs: exact steps between chosen neurons, whatever lies between them."""
