"""What `launch/bench.py` measures, and PyTorch's way beside it; each file says what it holds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # subjax, where it is not installed
