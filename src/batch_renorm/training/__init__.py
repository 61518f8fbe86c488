"""What the paper describes: the step, the optimiser, the average, and what is measured of them."""
