"""A data set: its rows, the `.precomputed` folder, samples, and batches of them.

Knows the layout of tokens, and no model. Start in samples.py. The list of a folder's samples is
index.jsonl: lines that are added under a lock, by any number of processes (see index.py).
"""
