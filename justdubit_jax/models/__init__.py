"""The mathematics of LTX-2 and of Gemma: modules and functions of arrays.

Knows no file, mesh, config key or training. `Block` in block.py is the model's equation; start in
transformer.py and follow what it imports.
"""
