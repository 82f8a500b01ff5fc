"""Map one scorer's scores onto another's, and measure a scorer against people or against another scorer."""
