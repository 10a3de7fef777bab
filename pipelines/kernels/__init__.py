"""What one core does to one slab: NumPy and LAPACK only, no Dask and no Zarr."""
