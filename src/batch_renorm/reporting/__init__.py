"""Reads run folders and sets them against the published results. Knows files, never models."""
