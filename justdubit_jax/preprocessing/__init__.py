"""Rows of a data set to latents on disk: read, brought into buckets, encoded, written.

Start in encode.py.
"""
