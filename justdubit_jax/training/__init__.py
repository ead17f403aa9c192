"""How it learns: the objective, the jitted step, the optimizer, and the config turned into values.

Knows adapters, batches and the mesh; no clip, display or folder of a run. Start in step.py, then
objective.py.
"""
