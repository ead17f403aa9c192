"""From noise to clean tokens: the sigma schedule, guidance, the Euler loop.

Mathematics on the model's outputs; knows no file and no mesh. Start in loop.py, `denoise`.
"""
