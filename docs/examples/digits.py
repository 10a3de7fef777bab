"""Write the 1,797 images of handwritten digits that scikit-learn carries as a Zarr array, one image of 8 × 8 a row.

python docs/examples/digits.py data/digits.zarr
tallgrass run configs/jobs/digits-pca.yaml
"""

import sys
from pathlib import Path

import zarr
from sklearn.datasets import load_digits
from zarr.codecs import Crc32cCodec

ROWS = 256
"""Images of a chunk."""


def main(folder: Path) -> None:
    """A (1797, 64), the grey of each pixel from 0 to 16, and y (1797,), the digit."""
    digits = load_digits()
    group = zarr.open_group(folder, mode="w")
    for name, array in (("A", digits.data), ("y", digits.target.astype(float))):
        stored = group.create_array(
            name, shape=array.shape, dtype=array.dtype, chunks=(ROWS, *array.shape[1:]), compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )  # fmt: skip
        stored[...] = array


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/digits.zarr"))
