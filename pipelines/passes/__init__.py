"""One read of the matrix each: a start, a step per slab, and a merge."""
