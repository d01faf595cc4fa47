-- The snapshot whose layer this one's is, byte for byte: it was made by stacking that one, which stands on nothing.
ALTER TABLE snapshots ADD COLUMN layer_of TEXT;
CREATE INDEX snapshots_layer_of ON snapshots (layer_of) WHERE layer_of IS NOT NULL;

-- What a step's key was made of, to be compared with later ones. It outlives the step's result.
CREATE TABLE traces (
    key   TEXT    PRIMARY KEY,   -- as in records
    label TEXT    NOT NULL,      -- the step as people wrote it, without its number
    size  INTEGER NOT NULL,      -- of `trace`
    made  INTEGER NOT NULL,      -- when the step first ran
    trace BLOB    NOT NULL
) STRICT;
CREATE INDEX traces_label ON traces (label, made);
CREATE INDEX traces_made  ON traces (made);
CREATE INDEX traces_large ON traces (made) WHERE size > 65536;

DROP TABLE build_steps;
DROP TABLE builds;
CREATE TABLE builds (
    id      TEXT    PRIMARY KEY,   -- that of the lease its process holds: it runs as long as that lease lives
    project TEXT    NOT NULL,      -- hash of context, Dockerfile and target: builds of one project are compared
    request TEXT    NOT NULL,      -- JSON: what was asked for
    started INTEGER NOT NULL,
    ended   INTEGER,               -- NULL while it runs, and of a build that was killed
    outcome TEXT,                  -- JSON: how it ended
    journal BLOB                   -- what happened, unless that is in a file of builds/<id>/
) STRICT;
CREATE INDEX builds_started ON builds (started);
CREATE INDEX builds_project ON builds (project, started);
