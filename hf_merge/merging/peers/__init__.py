"""Merges that give every task a model of its own again: what MERGE is compared with beside static merges.

They are no merge methods, for what they make of a group is more than one expert. Each reads base and fine-tunes tensor
by tensor, says what it takes to store, and gives a task's weights back.
"""
