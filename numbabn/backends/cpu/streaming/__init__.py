"""Statistics of data of any size, on the CPU: exact sums of integers, and moments with a range."""
