-- Version 3. Who counted a record's tokens has a column of its own; in older rows it stands behind the model's digest,
-- which their lines of the log hold them to.

ALTER TABLE usage ADD COLUMN metered_by TEXT NOT NULL DEFAULT '';
