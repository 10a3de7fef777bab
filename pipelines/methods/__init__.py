"""One method per file; options.py holds what a job file may say about each."""
