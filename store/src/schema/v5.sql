-- What the registry that serves this store keeps besides images: manifests without a tag, or that are no images, and the
-- tags of the latter. `repository` is a canonical name without tag. Owners of references gain served:<repository>@<digest>.
CREATE TABLE served_manifests (
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL,
    descriptor TEXT NOT NULL,              -- JSON, as a list of referrers shows it
    subject    TEXT,                       -- digest of the manifest that it refers to
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX served_manifests_subject ON served_manifests (repository, subject) WHERE subject IS NOT NULL;

CREATE TABLE served_tags (
    repository TEXT NOT NULL,
    tag        TEXT NOT NULL,
    digest     TEXT NOT NULL,
    PRIMARY KEY (repository, tag)
) STRICT, WITHOUT ROWID;
