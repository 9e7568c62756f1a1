"""The features room: point-in-time features of users, items and pairs, and the only door to Feast.

It must never know a model.
"""
