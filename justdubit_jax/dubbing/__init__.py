"""One dubbed clip: what conditions it, how it is sampled, what comes out.

The dub command and the validation both call it. Start in sample.py.
"""
