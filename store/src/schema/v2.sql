-- Bytes of the files of a layer, each counted once, as listings show them. A layer never changes, so neither does this.
CREATE TABLE layer_sizes (
    diff_id TEXT    PRIMARY KEY,
    size    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
