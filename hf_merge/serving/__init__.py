"""A configuration at work: routing inputs and recombining experts."""
