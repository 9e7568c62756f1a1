"""The evaluation room: metrics with intervals, baselines, and the gates that can refuse promotion.

It must never write a bundle.
"""
