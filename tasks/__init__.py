"""Stores, Parquet and Prefect tasks: what stands between the network and the flows.

Plain modules do the work and know nothing of Prefect; the ``@task`` modules beside them
log, call and return.
"""
