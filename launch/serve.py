r"""Serves an export; see `oat_jax.serve.run`, which is also the command oat-jax-serve.

Example:
  python launch/serve.py --export=E --port=8000
"""

import sys

if __name__ == "__main__":
  from oat_jax import console

  sys.exit(console.serve())
