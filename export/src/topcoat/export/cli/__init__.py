"""The command lines: thin, and quick to answer ``--help``."""
