"""The search for the Pareto front: tasks, evaluation, NSGA-II and its surrogate."""
