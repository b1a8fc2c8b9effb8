"""The demo: a small network on FashionMNIST, and the tour that asks it."""
