"""The models room: the shared user model and the adapters that make it serve one context.

It must never know where its tensors come from.
"""
