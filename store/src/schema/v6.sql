-- Where uploads of blobs were left, so that a later run goes on there.
CREATE TABLE blob_uploads (
    registry   TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL,
    place      TEXT NOT NULL,              -- the registry's address of the upload
    PRIMARY KEY (registry, repository, digest)
) STRICT, WITHOUT ROWID;
