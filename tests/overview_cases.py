"""A small capture, and text that does harm where it is not escaped."""

from __future__ import annotations

HOSTILE = "</script><script>alert(1)</script>"
TEXTS = (HOSTILE, "a\u2028b \u202eabc", "שלום עולם", "👩\u200d🚀 ß\x00")
CAPTURE = {"backend": "dummy", "batch_tokens": 400, "unit_tokens": 300, "logits_top_k": 12}
