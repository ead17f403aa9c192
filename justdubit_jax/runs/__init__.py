"""A training run kept, continued, recorded and shown: its folder, state, logs and charts.

Knows what a step changes; not how. Start in output.py.
"""
