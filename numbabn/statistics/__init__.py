"""Exact statistics of data of any size."""
