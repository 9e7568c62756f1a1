"""The report room: one page a night that a product manager reads in two minutes, and what it is drawn from.

It reads what the night left in its folder; it must never train, judge or change anything.
"""
