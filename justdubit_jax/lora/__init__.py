"""LoRA adapters: where they sit in a model, and the files they come from and go to.

Knows models and their keys; nothing of how adapters are trained. Start in adapters.py.
"""
