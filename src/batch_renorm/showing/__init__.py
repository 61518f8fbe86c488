"""Ways of showing what reporting has read and decided: figures, tables, a page, the terminal, a W&B report."""
