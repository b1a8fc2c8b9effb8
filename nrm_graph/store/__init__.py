"""The store: relevance tables as Parquet shards that manifests commit (formats 1 and 2).

A store is a folder::

    store.json                     what was extracted, and how; its presence makes the store
    program.json                   the traced program
    weights.safetensors            its tensors, but those that store.json names
    units.safetensors              OPTIONAL: custom partitions, one integer array per layer name
    shards/<name>.json             manifest of one shard: the commit point
    shards/<name>.inputs.parquet   shards/<name>.nodes.parquet
    shards/<name>.edges.parquet    shards/<name>.tensors.parquet
    conditions/<name>/             OPTIONAL: tables of measures conditioned on an event, or reduced
        condition.json             the event, or what is watched; its presence makes the condition
        nodes-<hash>.safetensors   of reduced tables: the node of every watched neuron
        shards/                    as above
    names/<layer_id>.json          OPTIONAL: names that the user gave units of a layer

The words MUST, MUST NOT, SHOULD and MAY below are used as in RFC 2119.

**Folder.** A store MUST be a local folder.  Each of its files beside ``shards`` and ``names`` MUST
be created exclusively and never changed, ``store.json`` last; a folder without it is not a store.
It MUST hold ``format_version`` (2 where ``max_edges`` is a number or ``named`` is there, 1
everywhere else), ``program_hash``, ``composite``, ``layers``, ``groups`` (each: dst layer, src
layer, dense edges), ``coverage`` (over 0, at most 1), ``top`` and ``mantissa_bits`` (null for
none), ``classes`` and ``preprocessing`` (null if not known), ``versions`` and ``files`` (by name:
size and SHA-256 of the program's files).  It SHOULD hold ``pruned`` (each: dst layer, src layer,
coverage, top or null), the pairs of layers of which not every edge is stored, MAY hold
``max_edges`` (see Bounded stores; null as if it were not there), and MAY hold more.  Of a network
that takes anything but one tensor of floats it MUST hold ``inputs``: in the order of the program, 1
to 1000 objects of exactly ``name`` (unique), ``shape`` (of one sample) and ``dtype`` (float, int64
or bool); without it the one input is the layer 0.  Of a network whose outputs were chosen by name
it MUST hold ``outputs``: objects of exactly ``name`` (unique) and ``shape``, whose flattened
tensors side by side are the last layer.  A reader MUST refuse a version that it does not know,
naming those it reads, and SHOULD check the sizes in ``files``. Entries of ``layers`` stand in the
order of ``layer_id`` (from 0, at most 32767) and MUST hold ``layer_id``, ``name`` (unique),
``kind``, ``shape``, ``resolution`` (neuron, channel, feature, token, head or custom), ``n_units``,
``depth`` and ``aliases``, and ``units`` (SHA-256 of the partition, as ``content`` below) where the
resolution is custom.  No file of a store may be a symbolic link. Continuing a store MUST be refused
where any of these but ``versions`` and ``files`` differs.

**Texts.** A store of texts MUST hold ``language``: exactly ``head`` (causal, masked or
classification), ``family`` and ``model`` (names, for messages) and ``length``, the positions of its
inputs ``input_ids`` and ``attention_mask``, which is 0 where a position, behind all others, is
padding: no table holds relevance or an activation of one.  ``inputs`` has the columns ``text`` and
``tokens`` (of the text's own positions alone), and, but of a classifier, ``target_text`` and
``predicted_text``, the texts of tokens; where ``weights`` say what is explained, ``target_text`` is
a JSON object of texts to weights, in the same order.

**Weights that are named.** A store MAY leave out of ``weights.safetensors`` tensors of the program
that are the model's own.  Then ``store.json`` MUST hold ``named``, in format 2, so that a
reader of format 1 alone refuses it: by the tensor's name in the program, objects of exactly
``name`` (in the model's ``state_dict``, for messages), ``dtype`` (F64, F32, I64, I32, I16, I8, U8
or BOOL, as safetensors calls it), ``shape`` and ``sha256``, that of the tensor's bytes (C order,
little-endian).  It MUST NOT say where they
are.  Who asks a reader for exact answers gives it tensors, of which float16 and bfloat16 are
widened to float32; the reader MUST take one by type, shape and SHA-256 alone, whatever its name,
MUST refuse to answer where one is missing, and MUST then compare the whole program with
``program_hash``, as that of any store.  All else is answered without them.

**Shards.** A writer MUST write each data file under a name that ends in ``.tmp``, fsync it, rename
it and fsync the folder, and only then do the same with the manifest.  A file whose shard has no
manifest is no part of the store: readers MUST ignore it.  Names are unique without locks (the time
of the commit and random bits: later names sort later); a committed file MUST NOT be changed or
overwritten.

**Manifest.** A JSON object of at most 16 MiB: ``format_version`` (its own, see ``weights``; that of
``store.json`` does not matter here), ``name`` (that of the file), ``files`` (for each of inputs,
nodes, edges, tensors: ``name``, ``size``, ``sha256``, ``rows``; it MUST be empty exactly where
``inputs`` is), ``metadata`` (field name to one of bool, int, float, string, strings, floats, null;
a reader MUST refuse others), ``inputs`` (each: ``input_id``, ``key``, ``target``, ``content``,
``nodes`` and ``edges`` as [first row group, number of row groups]; it MAY hold ``item``, a count or
null, ``flags``, at most 100 names or null, and ``kept``, a number from 0 to 1 or null, and of a
weighted target it MUST hold ``weights``, ``target`` being null: then ``format_version`` is 2, and 1
everywhere else, so that a reader of format 1 alone refuses what it has no form for, and reads
stores without it), ``replaces`` (names of shards whose manifests MUST be ignored; cycles are an
error), and it MAY hold ``failures`` (each: ``key``, ``error``), inputs that could not be extracted.
A failure does not count where a shard of a greater name holds the key. File names MUST be
``<shard>.<table>.parquet``: plain names of the same folder. A reader MUST check sizes when it opens
the store, and SHOULD check page checksums when it reads one input for exact inference.

**Replacement.** From the moment that a manifest is in place, the shards that it ``replaces`` do not
count.  What counts of them MUST stand in this shard or in others that count, but for keys that are
to be deleted; a failure that did not count MUST NOT count again; and ``replaces`` MUST also hold
what they replace, where its manifest is still there.  The name SHOULD come right after the greatest
of theirs, and the shard hold those failures that count of its keys and of theirs.  Who replaces
MUST hold the exclusive lock (``flock``) of the folder ``shards``.  Files of a shard that is
replaced MAY be deleted, its manifest first; they SHOULD stay as long as readers that saw it may be
at work.  Readers MUST NOT rely on them, and MUST list the folder again where a manifest vanishes
while they read.  Writers SHOULD hold a shared lock of each data file until its manifest is in
place: old files without manifest and lock MAY be deleted.  On a disk that machines share, these
locks MUST hold between them (else nobody may write while another compacts or deletes), and ages
SHOULD be told by the clock that dates the files.

**Names.** A file of ``names`` MUST be a JSON object of exactly ``format_version`` (1), ``layer``
(the name of the layer whose ``layer_id`` the file bears) and ``names``: by the unit's number in
decimal digits, below ``n_units``, text of 1 to 100 characters on one line without control
characters.  It is no part of what a store is known by: it MAY be replaced at any time, and MUST be
by renaming a synced file, so that readers see one or the other.  Of several writers the last one's
file stays.  Readers MUST ignore other files there, and tables MUST NOT depend on names.

**Seal.** ``store.json`` and manifests MAY hold ``seal``: the SHA-256 of the object without it, as
JSON text with sorted keys, no spaces, and everything beyond ASCII escaped.  Readers MAY check it.

**Identity.** ``input_id`` is the first 64 bits, big-endian, of SHA-256 over the UTF-8 bytes of
``<n>:<key>:<target>``, shifted right by one, where n is the length of the key in bytes; the length
in front keeps two pairs from joining to the same bytes. It is never negative. ``content`` is the
SHA-256 of ``<dtype>|<d0,d1,...>|`` followed by the tensor's bytes (C order, little-endian); of
several tensors it is the SHA-256 of the UTF-8 text ``<name>:<content>;``, one such for each in the
order of ``inputs``, where content is that of the tensor alone. ``target`` is the flat index of an
output; of a weighted target it is null, and the identity is hashed over the text ``weights`` in its
place: JSON of the flat indices, ascending, and their weights as floats that are finite and not
zero, such as ``{"0":1.0,"1":-1.0}``, without spaces; readers MUST refuse any other text. When two
manifests that are not replaced hold the same pair, the one with the smaller shard name counts, and
readers MUST NOT see the rows of the other. One key SHOULD have one content.

**Tables.** ``inputs``: input_id int64, key string, label string (nullable), target int32 (null
where there are weights), predicted int32, logit float32 (of weights the weighted sum), then one
nullable column per metadata field of the shard that holds a value. ``nodes``: input_id int64,
layer_id int16, unit int32, relevance float32, activation float32 (nullable).  ``edges``: input_id
int64, dst_layer int16, dst_unit int32, src_layer int16, src_unit int32, relevance float32,
conditional float32 (nullable).  ``tensors``: key string, content string, dtype string, shape
list<int64>, data large_binary; one row per key, no row where the inputs were left out.  Where
``inputs`` lists several tensors the table has the further column name string, and a key has one row
for each in that order, whose content is that of the tensor. Negative units are pseudo-units: -1
bias, -2 stabilizer, -3 pruned, -4 remainder.  A row (j, bias), (j, stabilizer) or (j, remainder) of
``edges`` has src_layer = dst_layer, the absorbing layer.  An absent row of ``nodes`` or ``edges``
is an exact zero, but in a pair of layers that ``pruned`` names, and in bounded stores, for which
see below.  In the former the rows (j, -3) and (-3, i), with the layers of the pair, MUST hold what
the edges left out have in sum from j and to i, and the row (-3, -3) minus their whole sum, so that
totals by j, by i and of the pair are those of the complete table; ``nodes`` holds the sum over a
layer's pairs as its unit -3.

**Bounded stores.** Where ``max_edges`` is a number N (1 to 2^31), in format 2, ``edges`` MUST hold
at most N rows of an input, over all pairs of layers; ``pruned`` and limits of pairs play no part
(``coverage`` is 1, ``top`` null).  Rows of a pair are its strongest edges between units, by
abs(relevance), and, exactly where its threshold is above 0, one row (-3, -3) with what all edges
that are left out hold in sum (it may be 0); its ``conditional`` is null.  There are no rows of
other pseudo-units: what a layer loses to bias (-1), stabilizer (-2) and remainder (-4) stands in
``nodes`` alone, as that layer's total, beside its unit -3, the sum of the rows (-3, -3) of its
pairs.  So the rows of a pair have the sum of the complete table, and edges out of a layer, with its
pseudo-units -1, -2 and -4, and edges into it, sum to its relevance.  Of one unit j the rest is
R(j), from ``nodes``, minus the rows from j that are kept: how it splits, between units below and
pseudo-units, the program says.  Every pair SHOULD keep the same share c of its sum of
abs(relevance), the largest with which all rows are within N: an edge is kept where the stronger
ones of its pair hold less than c; of equal ones the first in the order of rows.  Pairs of hardly
more edges than units (at most twice as many) SHOULD be kept whole before, the smallest first, in up
to half of the rows.  ``kept`` is the least share that a pair keeps, 1 where all keep all.
``thresholds`` MUST have one number for each of ``groups``, in that order: a number of float32,
above 0 where an edge that is not 0 is left out, that the abs(relevance) of no such edge exceeds.
It SHOULD be the weakest edge that is kept (where none is, the strongest), rounded up.  Rounding to
mantissa bits comes last: thresholds are those of the edges before it, of which a kept one may have
gone below.  Conditioned tables are bounded alike, by their own relevances, with ``kept`` and
``thresholds`` of their own.  Of an absent row a reader MUST assume no more than its threshold says.

**Rows.** Those of one input are contiguous and fill whole row groups, which belong to no other
input; a row group holds at most 1,048,576 rows.  Nodes are sorted by (layer_id, unit), edges by
(dst_layer, src_layer, dst_unit, src_unit); both keys are unique within an input.  NaN and infinity
MUST NOT be written anywhere: non-finite statistics make query engines drop rows.

**Metadata.** A field's type is fixed at first sight: a writer MUST refuse a value of another type,
but for floats in an int field, which make it float from that shard on, and ints of at most 53 bits
in a float field. Where shards disagree (a field was widened, or two writers met it at the same
moment), readers MUST read int with float as float and anything else as string; a field that no
shard holds a value of is a string. Names are printable, of at most 200 characters, and one field
whatever their letter case; those of the columns of ``inputs`` are reserved, and ``item``,
``weights``, ``flags``, ``kept`` and ``thresholds``. These are fields of the format's own, ``item``
an int (the place of the input in the data set, from 0, counted through all calls), ``weights`` a
string, ``flags`` strings, each a lower-case letter and up to 99 of lower-case letters, digits and
underscores (names of what a reader must know, see :mod:`nrm_graph.propagation.flags`, of which
later writers MAY have others; none is known of an input without them, and an empty list says that
there are none), ``kept`` a float (of the sum of abs(relevance), the share that the stored edges of
every pair of layers have at least: 1 where all are stored, null where that is not known) and
``thresholds`` floats (see Bounded stores; null elsewhere). Where a shard holds a field of such a
name and none of its ``inputs`` in the manifest does (for ``thresholds``: none has ``kept``), it is
a user's, from before the names were reserved. It keeps the name: readers show it, and writers MUST
NOT add to it. The table ``inputs`` that SQL sees has these columns always, null where no shard
holds them, but for ``thresholds``, which are a table of their own (input_id, dst_layer, src_layer,
threshold).

**Conditions.** ``conditions`` MAY hold folders, each of one condition; a reader that does not know
them MUST ignore it. A folder without ``condition.json`` is none. ``condition.json`` MUST be created
exclusively, after the folder ``shards`` beside it, and never changed: a JSON object of at most 64
MiB with exactly ``format_version`` (1, in stores of format 2 too; 2 of reduced tables, see there),
``name``, ``event`` (as :mod:`nrm_graph.events.serialization` describes), ``where`` (SQL over
``inputs`` that chose the inputs, or null), ``program_hash`` and ``store`` (those of the store:
``store`` is the SHA-256 of ``store.json`` without its seal, computed as a seal is) and ``seal``.
``name`` MUST be 1 to 60 ASCII letters, digits and underscores, a letter first, and no name of a
table of the store; the folder bears it in lower case. A reader MUST refuse another program or
store, and a writer another event or ``where`` under a name that is taken. Its shards are as those
of a store, with these differences: ``input_id``, ``key``, ``target`` and ``content`` are those of
inputs of the store (of others, which a writer may leave that a deletion overtook, readers SHOULD
NOT see the rows, and who replaces MAY drop them); no tensors are stored; and ``metadata`` has the
fields ``relevance`` (R(event)), ``error`` (a bound of its error; shards of before it was stated
lack the field, and readers MUST give null), ``amplification`` (sum of abs(R) of what the event is
made of, over abs(R(event))), ``absorbed`` (share of the conditioned measure that biases,
stabilizers and remainders hold), all float, ``status`` and ``reason`` (string), of any of which the
type is null where a shard holds no value, ``weights`` (string) where a shard holds weighted
targets, and ``kept`` and ``thresholds`` in bounded stores, whose table SQL sees as
``<name>_thresholds``. ``status`` is ``defined`` or ``undefined``; an undefined input has no nodes
and edges, no error, amplification and absorbed, and a reason. Relevances are R(node and event) /
R(event) and R(step and event) / R(event); ``conditional`` is q under the event, or null where walks
of the event do not go on independently of where they came from. Units, ``pruned`` pairs,
``max_edges`` and mantissa bits are those of the store. A writer MUST hold a shared lock of the
condition's folder, where the disk has locks, from before it makes or reads ``condition.json`` until
its last manifest is in place. Who drops a condition MUST hold the exclusive locks of the store's
folder ``shards`` and of the condition's folder; it puts a manifest in place that holds nothing and
replaces all others, and then removes ``condition.json``. The name MAY be used again, and what was
replaced is deleted as above.

**Reduced tables.** A condition whose ``condition.json`` has ``format_version`` 2 holds reduced
graphs of its inputs (see :mod:`nrm_graph.measures.reduced.steps`), of the same nodes for all. All
that is said of conditions holds, with these differences. ``condition.json`` MUST hold exactly
``format_version``, ``name``, ``event`` (null for none), ``where``, ``program_hash``, ``store``,
``asked``, ``layers``, ``file`` and ``seal``. ``asked`` holds ``watch`` (names or patterns, as text,
and neuron sets, as events are written), ``by`` (text, or an object of layer name to text: a
resolution, ``unit``, ``layer``, or ``custom`` and the SHA-256 of an array's content) and ``nodes``
(an integer, an object of layer name to integer, or null for all); it is compared, and a writer MUST
refuse another under a name that is taken. ``layers`` lists the watched layers by descending
``layer_id``, the last layer of the store first: objects of exactly ``layer_id``, ``resolution`` (as
in ``store.json``, or ``layer`` where all of it is one unit), ``nodes`` (their number, at least 1)
and ``share`` (from 0 to 1: of the sum over units of mean abs(R) over the inputs by which nodes were
chosen, that they hold). ``file`` is an object of exactly ``size`` and ``sha256``, of the file
``nodes-<first 16 digits of sha256>.safetensors`` of the same folder, which MUST be there before
``condition.json``; other files of such names are no part of the store, and MAY be deleted by age.
It MUST hold exactly one tensor for each entry of ``layers``, named by its ``layer_id`` in decimal
digits: int32, of the layer's shape or of length 1 along axes on which labels repeat, the unit of
every neuron under ``resolution``, -1 where it is not watched; distinct labels of at least 0 are the
nodes. Readers MUST check sizes, the hash, types, shapes and ranges before they use it. ``nodes``
has rows of these units alone, and of the pseudo-units -1, -2, -4 and -5 (an input that is not
watched), which hold what ends below the nodes of their layer. A row of ``edges`` with dst_layer
over src_layer is a direct step between nodes; one with src_layer = dst_layer and a pseudo-unit as
src_unit what ends below dst without another visit. Steps into a node sum to its relevance but at
the target (the last layer), steps out of it with its ends do so but at inputs, and relevances of
the target sum to 1. Without an event ``relevance`` and ``amplification`` are 1 and ``error`` 0. The
target's nodes MUST be all outputs that the inputs by which nodes were chosen explain; a writer MUST
refuse an input that explains another. Rows are neither pruned nor rounded, whatever the store's own
are, and ``<name>_layers`` is what SQL sees of ``layers``.

**Encoding.** Readers MUST accept any Parquet encoding.  Writers SHOULD use DELTA_BINARY_PACKED for
integers, BYTE_STREAM_SPLIT for floats, no dictionary, zstd level 1, pages of 131,072 rows and page
checksums.
"""
