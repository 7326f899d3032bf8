"""One run, from its file to its exported encoder.

It is built, recorded, saved, restored and evaluated here.
"""
