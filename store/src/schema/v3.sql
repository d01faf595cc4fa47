-- Where a record came from: NULL when the step ran here, else the cache it was imported from (`registry:host/name:tag`).
ALTER TABLE records ADD COLUMN origin TEXT;
