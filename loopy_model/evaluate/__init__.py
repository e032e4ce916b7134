"""Measurements on held-out material."""
