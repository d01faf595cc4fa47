-- Times are nanoseconds since 1970 in UTC, sizes are bytes. `volatile` is the flush generation a row was written in
-- while its files may not have reached the disk; NULL once they have.

CREATE TABLE state (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    store         TEXT    NOT NULL,   -- random id of this store: kernel objects are named after it
    driver        TEXT    NOT NULL,   -- of snapshots, unless an opener says otherwise
    boot          TEXT    NOT NULL,   -- the boot in which the volatile rows were written
    generation    INTEGER NOT NULL,   -- of flushes
    last_snapshot INTEGER NOT NULL    -- the newest snapshot's number
) STRICT;

CREATE TABLE blobs (
    digest   TEXT    PRIMARY KEY,
    size     INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    volatile INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_volatile ON blobs (volatile) WHERE volatile IS NOT NULL;

CREATE TABLE snapshots (
    id       TEXT    PRIMARY KEY,
    parent   TEXT,
    driver   TEXT    NOT NULL,
    size     INTEGER,                 -- disk use of its own directory; NULL until somebody asked
    diff_id  TEXT,
    chain_id TEXT,
    tar_size INTEGER,
    newest   INTEGER,                 -- newest time in its layer, seconds since 1970
    created  INTEGER NOT NULL,
    used     INTEGER NOT NULL,
    cost     INTEGER NOT NULL DEFAULT 0,   -- nanoseconds it took to make
    volatile INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_parent   ON snapshots (parent)   WHERE parent   IS NOT NULL;
CREATE INDEX snapshots_diff_id  ON snapshots (diff_id)  WHERE diff_id  IS NOT NULL;
CREATE INDEX snapshots_chain_id ON snapshots (chain_id) WHERE chain_id IS NOT NULL;
CREATE INDEX snapshots_volatile ON snapshots (volatile) WHERE volatile IS NOT NULL;

-- The blobs that are this layer, compressed in whichever way; `options` names how we compressed it, '' for blobs
-- that came from elsewhere.
CREATE TABLE layer_blobs (
    diff_id    TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    media_type TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    options    TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (diff_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX layer_blobs_digest ON layer_blobs (digest);

CREATE TABLE blob_origins (
    digest     TEXT NOT NULL,
    registry   TEXT NOT NULL,
    repository TEXT NOT NULL,
    PRIMARY KEY (digest, registry, repository)
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    target        TEXT    PRIMARY KEY,     -- digest of the manifest or index
    media_type    TEXT    NOT NULL,
    size          INTEGER NOT NULL,        -- of the manifest or index
    image_id      TEXT    NOT NULL,
    config_digest TEXT    NOT NULL,
    chain_id      TEXT,
    created       INTEGER NOT NULL         -- when it was made here
) STRICT, WITHOUT ROWID;
CREATE INDEX images_image_id ON images (image_id);

CREATE TABLE names (
    name    TEXT    PRIMARY KEY,           -- canonical reference
    target  TEXT    NOT NULL,
    updated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX names_target ON names (target);

-- Who keeps what. Owners: lease:<id>, image:<digest>, container:<id>, record:<key>.
-- Targets: blob:<digest>, snapshot:<id>, image:<digest>.
CREATE TABLE refs (
    owner  TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (owner, target)
) STRICT, WITHOUT ROWID;
CREATE INDEX refs_target ON refs (target);

CREATE TABLE leases (
    id      TEXT    PRIMARY KEY,
    pid     INTEGER NOT NULL,
    purpose TEXT    NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE intents (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    kind  TEXT    NOT NULL,
    step  INTEGER NOT NULL DEFAULT 0,
    json  TEXT    NOT NULL,
    lease TEXT    NOT NULL
) STRICT;

CREATE TABLE records (
    key      TEXT    PRIMARY KEY,
    result   TEXT    NOT NULL,
    record   TEXT    NOT NULL,
    cost     INTEGER NOT NULL DEFAULT 0,
    created  INTEGER NOT NULL,
    used     INTEGER NOT NULL,
    volatile INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX records_volatile ON records (volatile) WHERE volatile IS NOT NULL;

CREATE TABLE aliases (
    from_key TEXT PRIMARY KEY,
    to_key   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_to_key ON aliases (to_key);

CREATE TABLE claims (
    key   TEXT PRIMARY KEY,
    lease TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_lease ON claims (lease);

CREATE TABLE content_index (
    root     BLOB    NOT NULL,
    path     BLOB    NOT NULL,
    size     INTEGER NOT NULL,
    mtime    INTEGER NOT NULL,
    ctime    INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    mode     INTEGER NOT NULL,
    hash     BLOB    NOT NULL,
    recorded INTEGER NOT NULL,
    PRIMARY KEY (root, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    id      TEXT    PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    json    TEXT    NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE volumes (
    name      TEXT    PRIMARY KEY,
    driver    TEXT    NOT NULL,
    labels    TEXT    NOT NULL DEFAULT '{}',
    anonymous INTEGER NOT NULL DEFAULT 0,
    created   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE networks (
    id   TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE addresses (
    network   TEXT NOT NULL,
    ip        TEXT NOT NULL,
    container TEXT NOT NULL,
    PRIMARY KEY (network, ip)
) STRICT, WITHOUT ROWID;
CREATE INDEX addresses_container ON addresses (container);

CREATE TABLE builds (
    id      TEXT    PRIMARY KEY,
    json    TEXT    NOT NULL,
    started INTEGER NOT NULL,
    ended   INTEGER,
    status  TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE build_steps (
    build TEXT    NOT NULL,
    n     INTEGER NOT NULL,
    json  TEXT    NOT NULL,
    PRIMARY KEY (build, n)
) STRICT, WITHOUT ROWID;
