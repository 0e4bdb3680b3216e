"""What is claimed of normalisation, run: one script per claim, ``python -m examples.claims`` for all.

Every script states a claim and its source, runs a controlled experiment over several seeds, prints a table,
saves a figure and says in one sentence what was found. ``examples/README.md`` shows them all.
"""

import sys
from pathlib import Path

# The other examples are scripts, which import what stands beside them by its name alone.
sys.path.insert(0, str(Path(__file__).parents[1]))
