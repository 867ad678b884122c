"""Longspan's attention in Hugging Face models (transformers 5).

from longspan.integrations.huggingface import register

register()
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="longspan:Local(4096) | Global(first=4)")
"""

from longspan.integrations.huggingface.attention import HuggingFaceError
from longspan.integrations.huggingface.register import register

__all__ = ["HuggingFaceError", "register"]
