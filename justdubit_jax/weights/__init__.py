"""Checkpoints into models: which key is which parameter, strict loading, arrays born in place.

Knows the models and files of weights. Start in keys.py, then load.py.
"""
