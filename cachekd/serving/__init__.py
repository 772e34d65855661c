"""A teacher for other processes: scoring over HTTP (``cachekd serve-teacher``)."""
