"""The serving room: the promoted bundle plus online features give scores, rankings and an HTTP API.

It must never import torch or train anything.
"""
