"""The outer room: what many contexts' losses or gradients become, one step of the outer loop.

It must never know how a loss came about: any meta-learner gives one loss a task, and any aggregation
here takes them.
"""
