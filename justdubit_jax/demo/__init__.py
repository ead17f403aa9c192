"""The demo: a made-up world of small files, and the whole job done on it by the commands.

Start in __main__.py.
"""
