"""A data set: its rows, the `.precomputed` folder, samples, and batches of them.

Knows the layout of tokens, and no model. Start in samples.py.
"""
