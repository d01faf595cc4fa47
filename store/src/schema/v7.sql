-- A snapshot of `copied` holds the files that a step copied, and was made as `copied` says. One with `delta_of` holds only what
-- differs from that other one, which stands on the same parent and is no such itself: together they are one layer.
ALTER TABLE snapshots ADD COLUMN delta_of TEXT;
ALTER TABLE snapshots ADD COLUMN copied TEXT;
CREATE INDEX snapshots_delta_of ON snapshots (delta_of) WHERE delta_of IS NOT NULL;
CREATE INDEX snapshots_copied   ON snapshots (copied)   WHERE copied   IS NOT NULL;
