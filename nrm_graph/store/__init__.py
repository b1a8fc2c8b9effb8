"""The store: plain Parquet shards committed by manifests, read through DuckDB.

Format 1
--------
A store is a folder::

    store.json                    settings; written last when the store is made, never changed
    program.json                  the traced network (:mod:`nrm_graph.program`)
    weights.safetensors           its tensors
    units.safetensors             partitions that are the user's own (only if there are any)
    shards/<name>.json            manifest of a shard: the commit point
    shards/<name>.<table>.parquet tables inputs, nodes, edges, tensors

* A writer MUST write data files first, each to a ``.tmp`` name, flush it to disk, rename it, and
  write the manifest last in the same way.  It MUST NOT change a committed file.
* A reader MUST trust manifests only, MUST ignore files that no manifest names, and MUST refuse a
  manifest that names anything but plain files of its own folder with the sizes it states.
* A reader MUST refuse a ``format_version`` that it does not know.
* Rows of ``edges`` MUST be sorted by (input_id, dst_layer, src_layer, dst_unit, src_unit); a row
  group holds one input.
* Relevances MUST be finite.  An absent edge is 0.
* ``input_id`` is the first 8 bytes of SHA-256 over the UTF-8 key, a zero byte and the decimal
  target, big-endian, shifted right by one bit.
"""
