"""Networks. A norm layer arrives as a factory; no network knows which norm it has."""
