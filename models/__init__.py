"""Base models, LoRA attachment, tokenising and evaluation."""
