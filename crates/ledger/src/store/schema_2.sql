-- Version 2. No id has two usage records: a second one is refused where it is written.

DROP INDEX usage_id;
CREATE UNIQUE INDEX usage_id ON usage (id);
