"""Checks of rowlib."""
