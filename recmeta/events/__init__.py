"""The events room: raw logs become validated interactions and labelled rows; a ledger keeps what is done.

It must never know features, models or Feast.
"""
