"""What Tallgrass is measured against: dask, NumPy, the limits of the machine, and its own promises.

`python -m benchmarks` measures; `python -m benchmarks tables` writes the README's tables from what was measured.
"""
