"""Pixels, sound and prompts to latents and contexts, and back.

Each function loads one model and returns a function of host arrays; drop that function, and the
weights leave the device. Start in video.py.
"""
