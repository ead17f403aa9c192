"""Devices and processes: the mesh and where every array lies on it, how processes find one another.

Knows arrays and the shape of a transformer's call, and nothing of what is computed. Start in
sharding.py.
"""
