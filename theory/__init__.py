"""Proved guarantees, as data."""
