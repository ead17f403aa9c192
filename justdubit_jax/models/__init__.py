"""The mathematics of LTX-2 and of Gemma: modules and functions of arrays.

Knows no file, mesh, config key or training. Start in
transformer.py; `Block` in block.py is the model's equation.
"""
