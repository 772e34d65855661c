"""Divergences between cached teacher targets and a student: pure functions on plain tensors."""
