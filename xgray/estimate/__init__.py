"""What an experiment will take: counts of work times rates gives hours and money."""
