"""A module becomes a program: what is traced, how it runs, its layers, units and targets."""
