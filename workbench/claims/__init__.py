"""One file per study: its question as data (`CLAIM`), its judge and its figure.

The registry imports these files.
"""
