-- How far a gateway's log is counted in budgets, and which of its returns of shares came last.
CREATE TABLE mintage.part (
    stream   int8 PRIMARY KEY REFERENCES mintage.stream,
    counted  int8 NOT NULL DEFAULT 0,
    returned int8 NOT NULL DEFAULT 0
);
INSERT INTO mintage.part (stream, counted) SELECT id, seq FROM mintage.stream WHERE kind = 'gateway';

-- From here on `level` of a budget is all that was spent of it, and `leased` of a gateway's slice what it may spend and
-- has not spent so far as is counted. `most` and the message are the budget's as it was last set; `told` is the `most`
-- that was said to be used up.
DELETE FROM mintage.allowance;
ALTER TABLE mintage.allowance
    ADD COLUMN most   numeric(38, 0),
    ADD COLUMN topic  text,
    ADD COLUMN notice bytea,
    ADD COLUMN told   numeric(38, 0);
