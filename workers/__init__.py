"""Processes, clusters and the command line: everything that starts something."""
