"""A run on a machine: from a config to a finished run folder."""
