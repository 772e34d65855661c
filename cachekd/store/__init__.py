"""The store: columns to immutable shards on any fsspec filesystem, and back. Needs no torch."""
