"""The checkout under test, and the data folder that the tests were started with."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED_DATA = os.environ.get("WORKBENCH_DATA")
