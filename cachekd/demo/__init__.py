"""A small distillation from start to end, offline, on a CPU."""
