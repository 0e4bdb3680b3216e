"""Exact sums, and moments with a range, for statistics of data of any size."""
