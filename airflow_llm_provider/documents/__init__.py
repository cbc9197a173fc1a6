"""Documents in (files, object storage, rows), Messages API blocks out, and output files for the warehouse.

This package does not import Airflow. In the order in which a document passes through:

    sources.list_documents(...)  the documents to ask about, lazily
    reader.read(document)        its content, or Unreadable with a reason
    content.to_blocks(content)   the content as Messages API blocks, byte for byte
    output.RowWriter(...)        rows in input order, dead letters, schema, manifest
"""
