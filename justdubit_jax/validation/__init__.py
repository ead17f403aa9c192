"""What is looked at while training: dubbed samples and held-out losses, changing nothing.

Start in rounds.py.
"""
