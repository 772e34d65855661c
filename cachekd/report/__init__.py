"""Pages that show what a run came to."""
