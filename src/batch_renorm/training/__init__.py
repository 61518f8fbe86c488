"""Training: Lightning is known here and nowhere else."""
