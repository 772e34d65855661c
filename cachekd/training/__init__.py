"""From caches to a trained student."""
