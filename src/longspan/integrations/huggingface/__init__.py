"""Longspan's attention in Hugging Face models (transformers 5).

from longspan.integrations.huggingface import convert, register

register()
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="longspan:Local(4096) | Global(first=4)")
model = convert(AutoModel.from_pretrained("allenai/longformer-base-4096"))
"""

from __future__ import annotations

from typing import Any

from longspan.integrations.huggingface.register import register

__all__ = ["convert", "register"]


def convert(model: Any) -> Any:
    """See `longspan.integrations.huggingface.converted.convert`; transformers' models are imported at the first call."""
    from longspan.integrations.huggingface import converted

    return converted.convert(model)
