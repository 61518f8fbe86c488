"""Reads run folders and compares them with the published results. Uses files, never models."""
