"""Clips, sounds and pictures on disk: read, written, brought to a size, a rate and a length.

Knows nothing of latents but the sizes that they ask for. Start in read.py.
"""
