"""For `dask scheduler --preload workers.clusters.preload`: the page "Jobs", before the dashboard is built."""

from workers.dashboard import register

register()
