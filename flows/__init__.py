"""The flows: the order of things, and nothing else.

Each flow is the function of the same name in the module of the same name, such as
``flows.ingest.ingest``; ``python -m flows VERB`` runs it in this process.
"""
