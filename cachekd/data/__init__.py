"""From data files to tokenised samples: sources, columns, chat templates, lengths, packing."""
