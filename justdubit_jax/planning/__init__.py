"""What a run needs before it is started: memory, operations, what to switch.

Reads the compiled step. Start in memory.py.
"""
