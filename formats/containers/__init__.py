"""Bytes to named tensors and back: GGUF, APR, safetensors, Hugging Face folders. The way in is ``opening.py``."""
