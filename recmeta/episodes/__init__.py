"""The episodes room: ids become indices, rows become tensors, tensors become (support, query) episodes.

It must never know Feast, Airflow, data frames or files.
"""
