"""Sharing caches between places: push, pull, and who already has what."""
