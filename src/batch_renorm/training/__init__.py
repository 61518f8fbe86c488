"""What the paper describes: the step, the optimiser, the average, and the measurements."""
