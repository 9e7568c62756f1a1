"""Backbones: what can stand between gathered rows and the head of the shared model.

They must never know tables, adapters' fitting or meta-learners.
"""
