"""Teachers that are made once a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Family


@pytest.fixture
def adapter(family: Family, tmp_path: Path) -> Path:
    """A LoRA adapter whose weights are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(family.teacher)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"
