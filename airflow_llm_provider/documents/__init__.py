"""Documents in (files, object storage, rows), Messages API blocks out, and rows landed for the warehouse.

Knows no Airflow. In the order a document passes through:

    source.list_documents(...)   what there is to ask about, lazily
    reader.read(document)        its content, or Unreadable with a reason
    blocks.to_blocks(content)    the content as Messages API blocks, byte for byte
    sink.RowSink(...)            rows in input order, dead letters, schema, manifest
"""
