"""Benches, each against its peer: `python benches/run.py`."""
