"""Measuring students against caches and texts."""
